"""Ways to compute one model, timed in turns on one thread: as it is, or as a compiled artifact."""

import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from compressor.model import Model
from compressor.package import package
from compressor.profiling.measure import seconds_in_turns
from compressor.recipe import Recipe, find_packaged
from compressor.recipe_file import RecipeFile
from compressor.step import Context
from worker.artifact import load_artifact
from worker.manifest import PROGRAM
from worker.shard import load_shard

WARM_UP: Final = 3

Inputs = Sequence[Tensor]
Run = Callable[[Inputs], tuple[Tensor, ...]]


@dataclass(frozen=True, slots=True)
class Way:
    """`size`: bytes of the program file; None where there is no artifact."""

    run: Run
    size: int | None = None


def eager(model: Model) -> Way:
    def run(inputs: Inputs) -> tuple[Tensor, ...]:
        with torch.inference_mode():
            return (model.module(*inputs),)

    return Way(run)


def compiled(
    out: Path,
    model: Model,
    say: Callable[[str], None],
    compression: RecipeFile | None = None,
    context: Callable[[Model], Context] | None = None,
) -> Way:
    """The artifact of a model, made under `out` where it is not there yet, and loaded as one stage."""
    recipe = Recipe(model, stages=(1,), compression=compression)
    folder = find_packaged(out, recipe) or package(
        model,
        out,
        compression=compression,
        context=context,
        stages=(1,),
        progress=lambda text: say(f"{out.name}: {text}"),
    )
    shard = load_shard(load_artifact(folder), stage=0, stages=1)
    if shard.note:
        print(f"{folder}: {shard.note}", file=sys.stderr)
    return Way(shard.run, (folder / PROGRAM).stat().st_size)


def milliseconds(ways: Mapping[str, Way], inputs: Inputs, rounds: int) -> dict[str, float]:
    """Medians of `rounds` runs, the ways in turns."""
    runs, turns = [way.run for way in ways.values()], WARM_UP + rounds
    taken = seconds_in_turns(runs, inputs, clock=time.perf_counter, rounds=turns, least_rounds=turns, enough_s=0.0)
    return {name: 1e3 * statistics.median(seconds[WARM_UP:]) for name, seconds in zip(ways, taken, strict=True)}
