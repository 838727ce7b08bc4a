"""Chooses a stage's runtime by trying: uncompiled, compiled with frozen weights, without where that may help, with
sparse layers as dense ones, and on a GPU's sparse units.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import torch

from compressor.packaging.compile import CompileError, compile_stage
from compressor.packaging.decoded import decoded
from compressor.packaging.sparse_units import with_sparse_units
from compressor.profiling.measure import Clock, clock_of, distance, seconds_in_turns, threads
from compressor.quantization.quantize import int8_convolutions, int8_layers, operator_name
from worker.errors import Unsupported
from worker.manifest import FigureEntry
from worker.program import Program
from worker.runtime import Aot, Eager, Runtime

TOLERANCE: Final = 1e-3
"""Largest relative distance of a compiled stage's outputs from the uncompiled stage's that counts as correct."""

INT8_TOLERANCE: Final = 0.15
"""The same with int8 layers: a value near the edge between two of 256 steps falls to either side with the last bit."""

HALF_TOLERANCE: Final = 0.05
"""The same for 16-bit floats."""

ROUNDS: Final = 7
TIMING_S: Final = 3.0
"""A way is timed in so many rounds at each size, or as many as fit into this time for each way, seconds."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """`package`: the compiled file, None where the uncompiled stage is the fastest. `problem`: why compiling failed."""

    package: Path | None
    figures: tuple[FigureEntry, ...]
    problem: str = ""


def choose_runtime(
    stage: Program,
    inputs: Mapping[str, Sequence[torch.Tensor]],
    folder: Path,
    name: str,
    *,
    device: str,
) -> Chosen:
    """Measures the ways to run `stage` and keeps the fastest correct one.

    Args:
        stage: without outputs that are inputs passed on (see `worker.cut.part`).
        inputs: of each size that is measured, by a label.
        folder: where packages are written, as `name`.pt2; only the chosen one stays.
    """
    eager = Eager(stage.on(device), device)
    expected = {label: eager.run(tensors) for label, tensors in inputs.items()}
    ways = [_Way(eager, None, FigureEntry(runtime="eager", seconds={}))]
    problem = ""
    for make, told, suffix in _forms(stage, device):
        if told.frozen is False and len(ways) > 1 and _best(ways) is ways[-1]:
            continue
        path = folder / f"{name}{suffix}.pt2"
        try:
            form = make()
            if form is None:
                continue
            compile_stage(form, path, frozen=told.frozen, device=device)
            way = _checked(Aot(path, device), path, told, inputs, expected, tolerance=tolerance(stage))
        except (CompileError, Unsupported) as error:
            problem = str(error)
            path.unlink(missing_ok=True)
            continue
        ways = _timed([*ways, way], inputs, clock_of(device))
    ways = ways if len(ways) > 1 else _timed(ways, inputs, clock_of(device))
    best = _best(ways)
    for way in ways:
        if way.package is not None and way is not best:
            way.package.unlink()
    return Chosen(best.package, tuple(way.figure for way in ways), problem)


@dataclass(frozen=True, slots=True)
class _Way:
    """One way to run the stage, and what is known of it. `package`: its file, where it is compiled.

    `runtime` None: it is out of the race, and what it held is let go.
    """

    runtime: Runtime | None
    package: Path | None
    figure: FigureEntry


SUFFIXES: Final = ("", "-unfrozen", "-decoded", "-sparse-units")
"""What the file names of a stage's packages may end with, before `.pt2`."""


_WRONG_ON_GPUS: Final = "aten::searchsorted"
"""By which older versions decoded sparse layers. Compiled for a GPU it gives places that are not there."""


def _forms(stage: Program, device: str) -> Iterator[tuple[Callable[[], Program | None], FigureEntry, str]]:
    """What may be compiled, in the order in which it is tried; what a figure says of it; and the file name's ending.

    The first gives None where there is nothing of the kind in the stage.
    """
    frozen = FigureEntry(runtime="aotinductor", frozen=True, seconds={})
    as_it_is = device == "cpu" or not any(operator_name(step) == _WRONG_ON_GPUS for step in stage.steps)
    if as_it_is:
        yield lambda: stage, frozen, ""
    if as_it_is and stage.weights:
        yield lambda: stage, FigureEntry(runtime="aotinductor", seconds={}), "-unfrozen"
    yield lambda: decoded(stage), frozen.model_copy(update={"decoded": True}), "-decoded"
    if device != "cpu":
        units = frozen.model_copy(update={"sparse_units": True})
        yield lambda: with_sparse_units(stage, device), units, "-sparse-units"


def tolerance(stage: Program) -> float:
    """How far a compiled stage may be from the uncompiled one."""
    if int8_layers(stage) or int8_convolutions(stage):
        return INT8_TOLERANCE
    kinds = {stage.values[name].dtype for name in stage.values}
    return HALF_TOLERANCE if kinds & {torch.float16, torch.bfloat16} else TOLERANCE


def _checked(
    runtime: Runtime,
    package: Path,
    told: FigureEntry,
    inputs: Mapping[str, Sequence[torch.Tensor]],
    expected: Mapping[str, Sequence[torch.Tensor]],
    *,
    tolerance: float,
) -> _Way:
    """With how far it is from what is expected.

    Raises:
        CompileError: the compiled code does not run.
    """
    try:
        with threads(1):
            error = max(distance(runtime.run(tensors), expected[label]) for label, tensors in inputs.items())
    except RuntimeError as failure:
        raise CompileError(f"what was compiled does not run: {str(failure).strip()[:900]}") from failure
    return _Way(runtime, package, told.model_copy(update={"error": min(error, 1e30), "correct": error <= tolerance}))


def _timed(ways: Sequence[_Way], inputs: Mapping[str, Sequence[torch.Tensor]], clock: Clock) -> list[_Way]:
    """The same ways; those that are correct are timed, in turns. Of the compiled ones only the fastest stays in the
    race.
    """
    racing = {place: way.runtime for place, way in enumerate(ways) if way.runtime is not None and way.figure.correct}
    seconds: dict[int, dict[str, float]] = {place: {} for place in racing}
    with threads(1):
        for label, tensors in inputs.items():
            runs = [runtime.run for runtime in racing.values()]
            taken = seconds_in_turns(
                runs, tensors, clock=clock, rounds=ROUNDS, least_rounds=1, enough_s=TIMING_S * len(runs)
            )
            for place, values in zip(racing, taken, strict=True):
                seconds[place][label] = min(values)  # other work only ever adds
    timed = [
        replace(way, figure=way.figure.model_copy(update={"seconds": seconds[place]})) if place in seconds else way
        for place, way in enumerate(ways)
    ]
    kept = _best(timed[1:]) if any(way.figure.correct for way in timed[1:]) else None
    return [way if way is kept or way.package is None else replace(way, runtime=None) for way in timed]


def _best(ways: Sequence[_Way]) -> _Way:
    """The fastest correct one that is still in the race; the uncompiled one always is."""
    racing = [way for way in ways if way.figure.correct and way.runtime is not None]
    return min(racing, key=lambda way: _score(way.figure))


def _score(figure: FigureEntry) -> float:
    """The mean of the logarithms of its seconds: every size counts the same, whatever its own scale."""
    return sum(math.log(max(seconds, 1e-9)) for seconds in figure.seconds.values()) / max(1, len(figure.seconds))
