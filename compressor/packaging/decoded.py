"""A stage whose sparse layers are made dense: compiled beside the sparse form, so that the faster one can be kept.

The program in the artifact stays sparse, and so does what runs uncompiled.
"""

from collections.abc import Mapping, Set
from dataclasses import replace
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from compressor.quantization.quantize import operator_name
from worker.program import Interpreter, Program, Ref, Step, Value

_PUT: Final = frozenset({"aten::scatter", "aten::index_copy"})
"""By which sparse layouts are decoded (`compressor.sparsity.sparse_weight`): the compiler leaves them in its code."""

_VIEWS: Final = frozenset(
    f"aten::{name}" for name in ("view", "reshape", "_unsafe_view", "permute", "transpose", "clone", "expand")
)


def decoded(stage: Program) -> Program | None:
    """The stage with dense weights where it has sparse ones; None where it has none."""
    found = _put_weights(_whole_products(stage)).without_dead_steps()
    return None if len(found.steps) == len(stage.steps) else found


def _put_weights(stage: Program) -> Program:
    """The stage with every weight that is put together from others put together here, once."""
    names = {name for step in fixed_steps(stage) if operator_name(step) in _PUT for name in step.outputs if name}
    if not names:
        return stage
    steps = tuple(step for step in stage.steps if names.isdisjoint(name for name in step.outputs if name))
    return replace(stage, steps=steps, weights={**stage.weights, **fixed_values(stage, names)})


def fixed_steps(stage: Program) -> tuple[Step, ...]:
    """The steps whose results the stage's weights alone decide."""
    fixed = set(stage.weights)
    known: list[Step] = []
    for step in stage.steps:
        if not step.sizes and fixed.issuperset(step.uses):
            known.append(step)
            fixed.update(name for name in step.outputs if name)
    return tuple(known)


def fixed_values(stage: Program, names: Set[str]) -> dict[str, Tensor]:
    """Results of `fixed_steps`, by their names."""
    outputs = tuple(sorted(names))
    alone = replace(stage, inputs=(), outputs=outputs, steps=fixed_steps(stage), bounds={}, hints={})
    alone = alone.without_dead_steps()
    with torch.no_grad():
        return dict(zip(outputs, Interpreter(alone).run((), tuple(alone.weights.values())), strict=True))


def _whole_products(stage: Program) -> Program:
    """The stage with the products of `compressor.sparsity.block_linear` as products with whole weights."""
    makers = {name: step for step in stage.steps for name in step.outputs if name}
    values, weights, steps = dict(stage.values), dict(stage.weights), []
    for step in stage.steps:
        taken = _taken_blocks(step, stage, makers)
        if taken is None:
            steps.append(step)
            continue
        parts, columns, blocks = taken
        across, wide = (size for place, size in enumerate(stage.values[parts].shape) if place != 1)
        weight = _whole(stage.weights[blocks], stage.weights[columns], int(across), int(wide))
        name = f"{blocks} whole"
        weights[name] = weight
        values[name] = Value(weight.dtype, tuple(weight.shape), weight.stride())
        down, _, high = stage.weights[blocks].shape
        steps.append(replace(step, operator=_product, args=(Ref(parts), Ref(name), down, high), kwargs={}))
    return replace(stage, values=values, weights=weights, steps=tuple(steps))


def _taken_blocks(step: Step, stage: Program, makers: Mapping[str, Step]) -> tuple[str, str, str] | None:
    """(the input's parts, the weights that say which are taken, the weights that are blocks) of a product of blocks."""
    if operator_name(step) != "aten::bmm":
        return None
    left, right = step.args
    maker = makers.get(left.name)
    while maker is not None and operator_name(maker) in _VIEWS:
        maker = makers.get(maker.args[0].name)
    if right.name not in stage.weights or maker is None or operator_name(maker) != "aten::index_select":
        return None
    parts, dimension, columns = maker.args
    if dimension != 0 or columns.name not in stage.weights:
        return None
    shape, places, blocks = stage.values[parts.name].shape, stage.weights[columns.name], stage.weights[right.name]
    if len(shape) != 3 or not isinstance(shape[0], int) or not isinstance(shape[2], int) or blocks.dim() != 3:
        return None
    down, taken, _ = blocks.shape
    if taken % shape[2] or places.dtype != torch.int32 or tuple(places.shape) != (down * taken // shape[2],):
        return None
    return parts.name, columns.name, right.name


def _whole(blocks: Tensor, columns: Tensor, across: int, wide: int) -> Tensor:
    """blocks [rows of blocks, a row's inputs, rows of a block], columns [of all blocks] → weight [out, in]."""
    down, taken, high = blocks.shape
    tiles = torch.zeros(down, across, wide, high, dtype=blocks.dtype)
    place = columns.long().reshape(down, -1, 1, 1).expand(-1, -1, wide, high)
    tiles.scatter_(1, place, blocks.detach().reshape(down, taken // wide, wide, high))
    return tiles.permute(0, 3, 1, 2).reshape(down * high, across * wide).contiguous()


def _product(parts: Tensor, weight: Tensor, down: int, high: int) -> Tensor:
    """parts [columns of blocks, n, columns of a block] → [rows of blocks, n, rows of a block]."""
    count = parts.shape[1]
    rows = parts.transpose(0, 1).reshape(count, weight.shape[1])
    return functional.linear(rows, weight).reshape(count, down, high).transpose(0, 1)
