"""A stage whose 2 of 4 sparse layers are multiplied by the sparse units of NVIDIA GPUs (cuSPARSELt).

Weights are packed on the device that will compute, since how cuSPARSELt lays them out is its own affair and may differ
from one GPU to the next. So the packed form is only in compiled packages, which are for one GPU's instructions and one
PyTorch; the program in the artifact stays plain, and so does what runs uncompiled. cuSPARSELt's product trusts its
arguments: program files may not name it (`worker.operators`).
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from compressor.packaging.decoded import fixed_steps, fixed_values
from compressor.quantization.quantize import operator_name
from compressor.sparsity.sparse_gpu import SHORT, SIDE
from worker.errors import Unsupported, first_line
from worker.program import Program, Ref, Step, Value

_ROWS: Final = 8
"""The product takes multiples of so many rows."""

Compress = Callable[[Tensor], Tensor]


def with_sparse_units(stage: Program, device: str, *, compress: Compress = torch._cslt_compress) -> Program | None:
    """The stage, its weights packed on `device`, for that device only; None where no weight is 2 of 4 in 16 bits.

    Raises:
        Unsupported: the device cannot pack them.
    """
    sparse = {name: weight for name, weight in _fixed_weights(stage).items() if _fits(weight)}
    if not sparse:
        return None
    values, weights, steps = dict(stage.values), dict(stage.weights), []
    for step in stage.steps:
        name = _weight_name(step)
        if name not in sparse:
            steps.append(step)
            continue
        packed = f"{name} packed"
        if packed not in weights:
            weights[packed] = _packed(sparse[name], device, compress)
            values[packed] = Value(sparse[name].dtype, tuple(weights[packed].shape), weights[packed].stride())
        x, _, *bias = step.args
        steps.append(replace(step, operator=sparse_product, args=(x, Ref(packed), *bias)))
    return replace(stage, values=values, weights=weights, steps=tuple(steps)).without_dead_steps()


def sparse_product(x: Tensor, packed: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., in], a packed weight [out, ...], both in 16 bits → [..., out]."""
    rows = x.reshape(-1, x.shape[-1])
    padded = functional.pad(rows, (0, 0, 0, -rows.shape[0] % _ROWS))
    y = torch._cslt_sparse_mm(packed, padded.t(), bias=bias, transpose_result=True)[: rows.shape[0]]
    return y.reshape(*x.shape[:-1], packed.shape[0])


def _packed(weight: Tensor, device: str, compress: Compress) -> Tensor:
    try:
        return compress(weight.to(device).contiguous())
    except RuntimeError as error:
        told = first_line(error)[:300]
        raise Unsupported(f"{device} cannot pack 2 of 4 sparse weights: {told}") from error


def _fixed_weights(stage: Program) -> Mapping[str, Tensor]:
    """The weights of linear layers, those that are put together from others put together here."""
    names = {name for step in stage.steps if (name := _weight_name(step)) is not None}
    made = {name for step in fixed_steps(stage) for name in step.outputs if name}
    return fixed_values(stage, names & made) | {name: stage.weights[name] for name in names & set(stage.weights)}


def _weight_name(step: Step) -> str | None:
    """The name of a linear layer's weight; None for other steps."""
    if operator_name(step) != "aten::linear" or not isinstance(step.args[1], Ref):
        return None
    return step.args[1].name


def _fits(weight: Tensor) -> bool:
    if weight.dtype not in SHORT or weight.dim() != 2 or any(size % SIDE for size in weight.shape):
        return False
    return int((weight.detach().reshape(-1, 4) != 0).sum(1).max()) <= 2
