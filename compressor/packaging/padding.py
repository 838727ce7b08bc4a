"""Proves that padding does no harm: what is declared of a model's inputs is tried before it is believed."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from compressor.profiling.measure import distance, example_inputs
from worker.expression import evaluate
from worker.nouns import BATCH
from worker.program import Program
from worker.runtime import Eager

Pad = bool | int | float


def padding_error(
    program: Program,
    names: Mapping[str, str],
    pads: Sequence[Pad | None],
    arriving: Sequence[tuple[Sequence[torch.Tensor], Mapping[str, int]]],
) -> float:
    """How far the answers of requests move when they are padded to one length and computed together.

    Args:
        program: a program or a stage.
        names: the axis that each symbol is.
        pads: what fills each input; None for one that has only fixed axes besides the batch.
        arriving: two requests or more: inputs, and the sizes (symbol to length) that they have.

    Returns:
        The largest relative distance (see `compressor.profiling.measure.distance`) from the answers of each alone.
    """
    runtime = Eager(program)
    longest = {symbol: max(sizes[symbol] for _, sizes in arriving) for symbol in names}
    stacked = []
    for place, pad in enumerate(pads):
        shape = program.values[program.inputs[place]].shape
        rows = [
            _filled(inputs[place], [int(evaluate(size, {**longest, **_batch(names, sizes)})) for size in shape], pad)
            for inputs, sizes in arriving
        ]
        stacked.append(torch.cat(rows))
    together = runtime.run(stacked)
    worst, first = 0.0, 0
    for inputs, _ in arriving:
        alone = runtime.run(inputs)
        rows_here = alone[0].shape[0]
        mine = [
            tensor[first : first + rows_here][tuple(slice(size) for size in one.shape)]
            for tensor, one in zip(together, alone, strict=True)
        ]
        worst = max(worst, distance(mine, alone))
        first += rows_here
    return worst


def _batch(names: Mapping[str, str], sizes: Mapping[str, int]) -> dict[str, int]:
    return {symbol: sizes[symbol] for symbol, axis in names.items() if axis == BATCH}


def _filled(tensor: torch.Tensor, shape: Sequence[int], pad: Any) -> torch.Tensor:
    if list(tensor.shape) == list(shape):
        return tensor
    filled = torch.full(list(shape), 0 if pad is None else pad, dtype=tensor.dtype)
    filled[tuple(slice(size) for size in tensor.shape)] = tensor
    return filled


def two_requests(
    program: Program, names: Mapping[str, str], examples: Sequence[torch.Tensor]
) -> list[tuple[tuple[torch.Tensor, ...], dict[str, int]]]:
    """A short request of two rows and a longer one of one row, made of the examples."""
    found = []
    for rows, length in ((2, 5), (1, 11)):
        sizes = {}
        for symbol, axis in names.items():
            minimum, maximum = program.bounds.get(symbol, (1, None))
            wanted = rows if axis == BATCH else length
            sizes[symbol] = max(minimum, min(wanted, maximum or wanted))
        found.append((example_inputs(program, sizes, examples), sizes))
    return found
