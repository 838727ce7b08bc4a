"""What does a number format gain on a GPU? The products of a Llama block (3, 8B) and the whole block, compiled.

Each way is made by the project's own steps, captured as a program and compiled as a stage of an artifact is; the
baseline is the same module in bf16 under `torch.compile`. Ways take turns, so that neither the GPU's clock nor its
cache favours one. Times are the GPU's own (CUDA events around a call that was queued before the GPU came to it, so what
Python takes does not count), medians of --rounds calls; a ratio over 1 is faster than the baseline. Cosine and distance
(|a - b| / |b|) are to the same weights in fp32, of "sparse_2_4" to the same half of them: what pruning costs is another
question. What the device cannot do is named with the reason. Without a CUDA device it says so, and exits 0.

    python -m benchmarks.compression.gpu [--only 'int*'] [--shapes block] [--json]
    python -m benchmarks.compression.gpu --device cpu --tiny --uncompiled     # tries the script itself
"""

import argparse
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.compression.llama import LLAMA_3_8B, TINY, Shape, shapes
from compressor.capture import capture
from compressor.compress import compress_
from compressor.model import Model
from compressor.packaging.compile import CompileError, compile_stage
from compressor.packaging.sparse_units import with_sparse_units
from compressor.profiling.measure import cosine, distance
from compressor.pruning.prune_weights import PruneWeights
from compressor.quantization.formats import Bf16, Fp8, Int4WeightOnly, Int8Dynamic, Int8WeightOnly
from compressor.sparsity.sparse_gpu import Sparse24
from compressor.step import Context, Step, stored_bytes
from gateway.flags import whole
from worker.cores import cores
from worker.errors import ShardlineError, Unsupported, first_line
from worker.program import Interpreter, Program
from worker.runtime import check_device

ROWS: Final = (1, 16, 256, 4096)
BASE: Final = "compiled_bf16"
WARM_UP: Final = 3
WRONG: Final = 0.5
"""A result that is further from fp32's is no result."""

_AHEAD_CYCLES: Final = 4_000_000
"""What the GPU waits before a call, about two milliseconds, so that the whole call is queued by then."""

Run = Callable[[Tensor], Tensor]
Figures = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Way:
    """dtype: the model's, before the steps. pruning: done before, and to what the result is compared with."""

    name: str
    steps: tuple[Step, ...]
    dtype: torch.dtype = torch.bfloat16
    pruning: tuple[Step, ...] = ()


WAYS: Final = (
    Way("bf16", (Bf16(),), torch.float32),
    Way("bf16_model", ()),
    Way("fp8", (Fp8(),)),
    Way("int8_dynamic", (Int8Dynamic(),)),
    Way("int8_weight_only", (Int8WeightOnly(),)),
    Way("int4_weight_only", (Int4WeightOnly(),)),
    Way("sparse_2_4", (Sparse24(),), pruning=(PruneWeights(n_of_m="2:4"),)),
)


@dataclass(frozen=True, slots=True)
class Made:
    """A way's package and the bytes of its weights as they are stored; or why there is none."""

    package: Path | None
    stored: int
    refused: str = ""


def compiled(
    names: Sequence[str], ways: Sequence[Way], device: str, folder: Path, *, tiny: bool, workers: int
) -> dict[tuple[str, str], Made]:
    """Packages under `folder` by shape and way, made side by side; what fails so is tried again alone."""
    pairs = [(name, way.name) for name in names for way in ways]
    paths = {pair: folder / f"{number}.pt2" for number, pair in enumerate(pairs)}

    def side_by_side(pairs: Sequence[tuple[str, str]], workers: int) -> dict[tuple[str, str], Made]:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, context, max_tasks_per_child=1) as pool:  # each gives the GPU's memory back
            tasks = {pair: pool.submit(_compiled, *pair, device, paths[pair], tiny) for pair in pairs}
            return {pair: _made(task) for pair, task in tasks.items()}

    made = side_by_side(pairs, workers)
    for pair in pairs:
        if made[pair].package is None:
            made |= side_by_side([pair], 1)
    return made


def _made(task: "Future[Made]") -> Made:
    try:
        return task.result()
    except (BrokenProcessPool, OSError, ValueError) as error:  # a compiler that died, a full disk
        return Made(None, 0, f"{type(error).__name__}: {first_line(error)[:300]}")


def _compiled(name: str, way: str, device: str, path: Path, tiny: bool) -> Made:
    """One package, with frozen weights, as most stages are; without where that fails."""
    torch.set_num_threads(2)
    try:
        shape = shapes(TINY if tiny else LLAMA_3_8B)[name]
        program, after = _program(shape, next(one for one in WAYS if one.name == way), device, path.parent)
        try:
            compile_stage(program, path, frozen=True, device=device)
        except CompileError as error:
            print(f"{name}, {way}, with frozen weights: {first_line(error)[:300]}", file=sys.stderr)
            compile_stage(program, path, frozen=False, device=device)
    except (ShardlineError, RuntimeError) as error:
        return Made(None, 0, first_line(error)[:300])
    return Made(path, after)


def _program(shape: Shape, way: Way, device: str, folder: Path) -> tuple[Program, int]:
    """What the way makes of the shape, and the bytes of its weights as they are stored.

    Raises:
        ShardlineError: a step refuses the model or the device.
    """
    model = _pruned(shape, way.pruning)
    model.module.to(way.dtype)
    model = replace(model, inputs=tuple(replace(item, example=item.example.to(way.dtype)) for item in model.inputs))
    if way.steps:
        compress_(model.module, *way.steps, context=Context.of(model, target=device))
    with tempfile.TemporaryDirectory(dir=folder) as work:
        program = capture(model, Path(work) / "program.pt2")
    if any(isinstance(step, Sparse24) for step in way.steps):
        packed = with_sparse_units(program, device)
        if packed is None:
            raise Unsupported("no weight of it is 2 of 4")
        program = packed
    return program, stored_bytes(model.module)


@dataclass(frozen=True, slots=True)
class Bench:
    """How is measured."""

    device: str
    rows: Sequence[int] = ROWS
    rounds: int = 50

    def figures(
        self, shape: Shape, ways: Sequence[Way], packages: Mapping[str, Made] | None = None
    ) -> dict[str, Figures]:
        """By way, the baseline first: {"stored", "rows": {count: {"ms", "ratio", "cosine", "distance"}}}, with
        {"refused": reason} in the place of what could not be done.

        packages: by way; None runs modules and programs step by step, to try the script itself.
        """
        base = shape.model(torch.bfloat16).module.to(self.device)
        runs: dict[str, Run] = {BASE: base if packages is None else torch.compile(base, dynamic=False)}
        found: dict[str, Figures] = {BASE: {"stored": 1.0, "rows": {}}}
        for way in ways:
            try:
                runs[way.name], after = (
                    self._stepwise(shape, way) if packages is None else self._loaded(packages[way.name])
                )
            except (ShardlineError, RuntimeError) as error:
                found[way.name] = {"refused": first_line(error)[:300]}
                continue
            found[way.name] = {"stored": after / stored_bytes(base), "rows": {}}
        dtypes = {BASE: torch.bfloat16} | {way.name: way.dtype for way in ways}
        prunings: dict[str, tuple[Step, ...]] = {BASE: ()} | {way.name: way.pruning for way in ways}
        given = {count: shape.inputs(count).to(self.device) for count in self.rows}
        exact = {pruning: self._exact(shape, pruning, given) for pruning in {prunings[name] for name in runs}}
        for count, x in given.items():
            inputs = {name: x.to(dtypes[name]) for name in runs}
            right: dict[str, Run] = {}
            for name, run in runs.items():
                told = _checked(run, inputs[name], exact[prunings[name]][count])
                found[name]["rows"][str(count)] = told
                if "refused" not in told:
                    right[name] = run
            for name, figures in self._timed(right, inputs).items():
                found[name]["rows"][str(count)] |= figures
        return found

    def _stepwise(self, shape: Shape, way: Way) -> tuple[Run, int]:
        with tempfile.TemporaryDirectory() as folder:
            program, after = _program(shape, way, self.device, Path(folder))
        program = program.on(self.device)
        interpreter, weights = Interpreter(program), tuple(program.weights.values())
        return lambda x: interpreter.run((x,), weights)[0], after

    def _loaded(self, made: Made) -> tuple[Run, int]:
        """Raises Unsupported with the reason where there is no package."""
        if made.package is None:
            raise Unsupported(made.refused)
        index = -1 if self.device == "cpu" else torch.device(self.device).index
        loaded = torch._inductor.aoti_load_package(str(made.package), device_index=index)

        def run(x: Tensor) -> Tensor:
            outputs = loaded(x)
            first: Tensor = outputs if isinstance(outputs, Tensor) else outputs[0]
            return first

        return run, made.stored

    def _exact(self, shape: Shape, pruning: tuple[Step, ...], given: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """What the shape gives in fp32, by rows."""
        module = _pruned(shape, pruning).module.to(self.device)
        with torch.inference_mode():
            return {count: module(x) for count, x in given.items()}

    def _timed(self, runs: Mapping[str, Run], inputs: Mapping[str, Tensor]) -> dict[str, Figures]:
        taken: dict[str, list[float]] = {name: [] for name in runs}
        with torch.inference_mode():
            for _ in range(WARM_UP + self.rounds):
                for name, run in runs.items():
                    taken[name].append(seconds_of(run, inputs[name]))
        return summary({name: seconds[WARM_UP:] for name, seconds in taken.items()})


def seconds_of(run: Run, x: Tensor) -> float:
    """What a call takes where `x` is: on a GPU its own time."""
    if x.device.type == "cpu":
        began = time.perf_counter()
        run(x)
        return time.perf_counter() - began
    began_at, ended_at = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    with torch.cuda.device(x.device):
        torch.cuda._sleep(_AHEAD_CYCLES)  # type: ignore[no-untyped-call]
        began_at.record()
        run(x)
        ended_at.record()
        ended_at.synchronize()
    return float(began_at.elapsed_time(ended_at)) / 1e3


def summary(taken: Mapping[str, Sequence[float]]) -> dict[str, Figures]:
    """Seconds of calls by way → {"ms", "ratio"}: the median, and how often it goes into the baseline's."""
    medians = {name: statistics.median(seconds) for name, seconds in taken.items()}
    base = medians.get(BASE)
    return {
        name: {"ms": 1e3 * median} | ({} if base is None else {"ratio": base / median})
        for name, median in medians.items()
    }


def table(name: str, found: Mapping[str, Figures], rows: Sequence[int], device: str) -> Table:
    shown = Table(title=f"{name} on {device}; speed-up is over compiled bf16")
    shown.add_column("way")
    for column in ("stored", "cosine", *(f"{count} rows" for count in rows)):
        shown.add_column(column, justify="right")
    for way, figures in found.items():
        if "refused" in figures:
            shown.add_row(way, "", "", f"refused: {figures['refused']}")
            continue
        told = [figures["rows"][str(count)] for count in rows]
        near = [item["cosine"] for item in told if "cosine" in item]
        shown.add_row(way, f"{figures['stored']:.2f}", f"{min(near):.5f}" if near else "", *map(_cell, told))
    return shown


def _cell(told: Figures) -> str:
    if "refused" in told:
        return f"refused: {told['refused']}"
    return f"{told['ratio']:.2f}x ({told['ms']:.3f} ms)" if "ratio" in told else f"{told['ms']:.3f} ms"


def _pruned(shape: Shape, steps: tuple[Step, ...]) -> Model:
    """The shape in fp32 on the CPU, its least weights gone."""
    model = shape.model(torch.float32)
    if steps:
        compress_(model.module, *steps, context=Context.of(model))
    return model


def _checked(run: Run, x: Tensor, exact: Tensor) -> Figures:
    """How near a result is to fp32's, or why there is none."""
    try:
        with torch.inference_mode():
            found = run(x).float()
    except RuntimeError as error:
        return {"refused": first_line(error)[:300]}
    apart = distance([found], [exact])
    if not apart <= WRONG:
        return {"refused": f"wrong: it is {apart:.2g} from fp32"}
    return {"cosine": cosine(found, exact), "distance": apart}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda:0", help="cuda:N, or cpu to try the script (default: %(default)s)")
    parser.add_argument("--only", default="*", metavar="PATTERN", help="ways whose name matches")
    parser.add_argument("--shapes", default="*", metavar="PATTERN", help="shapes whose name matches")
    parser.add_argument("--rounds", type=int, default=50, help="calls of each, for the median (default: %(default)s)")
    parser.add_argument(
        "--workers", type=whole(1, 1024), default=max(1, cores() // 2), help="that compile (default: %(default)s)"
    )
    parser.add_argument("--tiny", action="store_true", help="shapes so small that they show nothing")
    parser.add_argument("--uncompiled", action="store_true", help="without the compiler")
    parser.add_argument("--json", action="store_true", help="one line of JSON after the tables")
    given = parser.parse_args()
    try:
        device = check_device(given.device)
    except Unsupported as error:
        print(f"nothing was measured: {error}", file=sys.stderr if given.json else sys.stdout)
        if given.json:
            print(json.dumps({"device": None, "refused": str(error)}))
        return
    console = Console(file=sys.stderr if given.json else sys.stdout, width=160)
    bench = Bench(device, rounds=given.rounds)
    ways = [way for way in WAYS if fnmatchcase(way.name, given.only)]
    known = {
        name: shape
        for name, shape in shapes(TINY if given.tiny else LLAMA_3_8B).items()
        if fnmatchcase(name, given.shapes) or fnmatchcase(name.split()[0], given.shapes)
    }
    found: dict[str, dict[str, Figures]] = {}
    with tempfile.TemporaryDirectory() as folder:
        made: dict[tuple[str, str], Made] = {}
        if not given.uncompiled:
            print(f"compiling {len(known) * len(ways)} packages …", file=sys.stderr, flush=True)
            made = compiled(list(known), ways, device, Path(folder), tiny=given.tiny, workers=given.workers)
        for name, shape in known.items():
            print(f"{name} …", file=sys.stderr, flush=True)
            own = None if given.uncompiled else {way.name: made[name, way.name] for way in ways}
            found[name] = bench.figures(shape, ways, own)
            console.print(table(name, found[name], bench.rows, device_name(device)))
            torch._dynamo.reset()  # a shape's compiled baseline, and what it holds
    if given.json:
        told = {"device": device_name(device), "torch": torch.__version__, "rounds": given.rounds}
        print(json.dumps(told | {"shapes": found}))


def device_name(device: str) -> str:
    if device == "cpu":
        return "the CPU"
    major, minor = torch.cuda.get_device_capability(torch.device(device))
    return f"{torch.cuda.get_device_name(torch.device(device))} (sm_{major}{minor})"


if __name__ == "__main__":
    main()
