"""Rewrites a stage, before it is compiled, into steps that give the same and compile to faster code.

The program in the artifact stays as it was captured, and so does what runs uncompiled.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import torch
import torch._inductor.test_operators

from worker.program import Program, Step

_BOUND: Final = 4.5
_TAIL: Final = (
    *(1.98269851e-4, -1.57104166e-3, 5.45309498e-3, -8.96753922e-3, 8.43252252e-3),
    *(-4.52217579e-3, 1.41769876e-3, -2.21311028e-4, 1.31370011e-5),
)
"""Φ(-u) = t P(t) with t = _BOUND - u, for u from 0 to _BOUND: least squares on Chebyshev nodes, weighted by what the
error becomes in x Φ(x), and weighted anew where that was worst."""


def rewrite(stage: Program) -> Program:
    """The stage with faster steps for the exact GELU (within 2e-5), layer norms and row scales (up to rounding).

    Only for stages with int8 layers: of what they round to, that is a hundredth of a step.
    """
    return replace(stage, steps=tuple(_rewritten(step, stage) for step in stage.steps))


def _rewritten(step: Step, stage: Program) -> Step:
    aten = torch.ops.aten
    if step.operator is aten.gelu.default and step.kwargs.get("approximate", "none") == "none":
        return replace(step, operator=gelu, kwargs={})
    if step.operator is aten.layer_norm.default and len(step.args[1]) == 1:
        return replace(step, operator=layer_norm)
    if step.operator is aten.reciprocal.default and _one_a_row(step.outputs[0], stage):
        return replace(step, operator=row_reciprocal)
    return step


def _one_a_row(name: str | None, stage: Program) -> bool:
    return name is not None and stage.values[name].shape[-1:] == (1,)


def layer_norm(
    x: torch.Tensor,
    shape: Sequence[int],
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
    _: bool = True,
) -> torch.Tensor:
    """As `aten.layer_norm` over the last dimension; a row's deviation is computed once, not for each of its vectors."""
    centred = x - x.mean(-1, keepdim=True)
    result = centred * _kept(torch.rsqrt((centred * centred).mean(-1, keepdim=True) + eps))
    result = result if weight is None else result * weight
    return result if bias is None else result + bias


def row_reciprocal(x: torch.Tensor) -> torch.Tensor:
    """1 / x for one number a row, computed once for it."""
    return _kept(x.reciprocal())


def _kept(x: torch.Tensor) -> torch.Tensor:
    """`x`, which the compiler is to keep in memory: it would else compute it again wherever it is read."""
    kept: torch.Tensor = torch.ops._inductor_test.realize(x)
    return kept


def gelu(x: torch.Tensor) -> torch.Tensor:
    """x Φ(x), elementwise: relu(x) - |x| Φ(-|x|).

    Bounds are written as relu: the compiler makes one instruction of it, of clamp and of maximum four (for NaN).
    """
    rest = torch.relu(_BOUND - x.abs())
    return torch.relu(x) - (_BOUND - rest) * (rest * _polynomial(rest, _TAIL))


def _polynomial(x: torch.Tensor, coefficients: tuple[float, ...]) -> torch.Tensor:
    result = x * coefficients[-1] + coefficients[-2]
    for coefficient in reversed(coefficients[:-2]):
        result = result * x + coefficient
    return result
