"""Chooses a stage's runtime by trying: uncompiled, compiled with frozen weights, without where that may help, and with
sparse layers as dense ones.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

from compressor.compile import CompileError, compile_stage
from compressor.decoded import decoded
from compressor.measure import Clock, clock_of, distance, run_seconds, threads
from compressor.quantize import int8_convolutions, int8_layers
from worker.manifest import FigureEntry
from worker.program import Program
from worker.runtime import Aot, Eager, Runtime

TOLERANCE: Final = 1e-3
"""Largest relative distance of a compiled stage's outputs from the uncompiled stage's that counts as correct."""

INT8_TOLERANCE: Final = 0.15
"""The same with int8 layers: a value near the edge between two of 256 steps falls to either side with the last bit."""

HALF_TOLERANCE: Final = 0.05
"""The same for 16-bit floats."""


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
    clock = clock_of(device)
    figures = [
        _measure(eager, FigureEntry(runtime="eager", seconds={}), inputs, expected, tolerance=math.inf, clock=clock)
    ]
    packages: dict[int, Path] = {}
    problem = ""
    for form, told, suffix in _forms(stage):
        if told.frozen is False and len(figures) > 1 and _good(figures[-1], figures[0]):
            continue
        path = folder / f"{name}{suffix}.pt2"
        try:
            compile_stage(form, path, frozen=told.frozen, device=device)
            figure = _measure(Aot(path, device), told, inputs, expected, tolerance=tolerance(stage), clock=clock)
        except CompileError as error:
            problem = str(error)
            path.unlink(missing_ok=True)
            continue
        packages[len(figures)] = path
        figures.append(figure)
    best = min(
        (place for place, figure in enumerate(figures) if figure.correct), key=lambda place: _score(figures[place])
    )
    for place, path in packages.items():
        if place != best:
            path.unlink()
    return Chosen(packages.get(best), tuple(figures), problem)


SUFFIXES: Final = ("", "-unfrozen", "-decoded")
"""What the file names of a stage's packages may end with, before `.pt2`."""


def _forms(stage: Program) -> Iterator[tuple[Program, FigureEntry, str]]:
    """What may be compiled, in the order in which it is tried; what a figure says of it; and the file name's ending."""
    yield stage, FigureEntry(runtime="aotinductor", frozen=True, seconds={}), ""
    if stage.weights:
        yield stage, FigureEntry(runtime="aotinductor", seconds={}), "-unfrozen"
    dense = decoded(stage)
    if dense is not None:
        yield dense, FigureEntry(runtime="aotinductor", frozen=True, decoded=True, seconds={}), "-decoded"


def _good(figure: FigureEntry, eager: FigureEntry) -> bool:
    return figure.correct and _score(figure) < _score(eager)


def tolerance(stage: Program) -> float:
    """How far a compiled stage may be from the uncompiled one."""
    if int8_layers(stage) or int8_convolutions(stage):
        return INT8_TOLERANCE
    kinds = {stage.values[name].dtype for name in stage.values}
    return HALF_TOLERANCE if kinds & {torch.float16, torch.bfloat16} else TOLERANCE


def _measure(
    runtime: Runtime,
    told: FigureEntry,
    inputs: Mapping[str, Sequence[torch.Tensor]],
    expected: Mapping[str, Sequence[torch.Tensor]],
    *,
    tolerance: float,
    clock: Clock,
) -> FigureEntry:
    """`told`, with what was measured."""
    with threads(1):
        error = max(distance(runtime.run(tensors), expected[label]) for label, tensors in inputs.items())
        correct = error <= tolerance
        seconds = (
            {label: run_seconds(runtime, tensors, clock=clock) for label, tensors in inputs.items()} if correct else {}
        )
    return told.model_copy(update={"seconds": seconds, "error": min(error, 1e30), "correct": correct})


def _score(figure: FigureEntry) -> float:
    """The mean of the logarithms of its seconds: every size counts the same, whatever its own scale."""
    return sum(math.log(max(seconds, 1e-9)) for seconds in figure.seconds.values()) / max(1, len(figure.seconds))
