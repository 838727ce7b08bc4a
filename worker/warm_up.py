"""What a worker computes before it says that it is ready: zeros, at everyday sizes."""

from collections.abc import Mapping

import torch

from worker.batcher import WARM_UP_LENGTHS
from worker.collate import TORCH_TYPES
from worker.expression import evaluate, parse
from worker.nouns import BATCH, Signature, TensorSpec


def warm_up_shapes(signature: Signature, max_rows: int) -> list[dict[str, int]]:
    """Everyday shapes within the axes' bounds: one row with short axes, one with long ones, then four short rows."""
    names = {name for spec in signature.inputs for dim in spec.shape for name in _axes_of(dim)}
    bounds = {axis.name: axis for axis in signature.axes}

    def shape(rows: int, length: int) -> dict[str, int]:
        wanted = {name: min(rows, max_rows) if name == BATCH else length for name in names}
        return {name: bounds[name].nearest(size) if name in bounds else size for name, size in wanted.items()}

    short, long = WARM_UP_LENGTHS
    return [shape(1, short), shape(1, long), shape(4, short)]


def warm_up_inputs(signature: Signature, lengths: Mapping[str, int]) -> list[torch.Tensor]:
    """Zeros, with axes of these lengths."""
    return [_zeros(spec, lengths) for spec in signature.inputs]


def _axes_of(dim: int | str) -> set[str]:
    """The axes that a dimension such as "4*sequence" is made of."""
    size = parse(str(dim))
    return set() if isinstance(size, int) else {str(axis) for axis in size.free_symbols}


def _zeros(spec: TensorSpec, lengths: Mapping[str, int]) -> torch.Tensor:
    shape = [int(evaluate(parse(str(dim)), lengths)) for dim in spec.shape]
    return torch.zeros(shape, dtype=TORCH_TYPES[spec.datatype])
