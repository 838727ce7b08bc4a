"""Int8 products in compiled stages, on x86 processors with AVX2 but without VNNI.

PyTorch multiplies int8 matrices there with plain loops. The kernel is in `avx2_product.cpp`; it becomes part of the
code that AOTInductor generates, so that a package needs nothing but itself. What is not known here: what is done before
and after a product; the compiler fuses that as it does elsewhere.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional

from worker.integer_product import integer_product
from worker.program import Program, Ref, Step, Value

_FUNCTION: Final = "aoti_torch_cpu_int8_product"
CALL: Final = f"AOTI_TORCH_ERROR_CODE_CHECK({_FUNCTION}(".encode()
"""What the generated code has where it calls this kernel; the kernel itself is in it in any case."""

_COLUMNS, _DEPTH = 16, 4
_SOURCE: Final = Path(__file__).with_suffix(".cpp")
_TRANSPOSED: Final = frozenset({torch.ops.aten.t.default, torch.ops.aten.permute.default, torch.ops.aten.transpose.int})


@torch.library.custom_op("shardline::int8_product", mutates_args=(), tags=(torch.Tag.needs_contiguous_strides,))
def int8_product(x: Tensor, packed: Tensor, columns: int) -> Tensor:
    """x [rows, depth] int8 times packed weights (see `pack`) → [rows, columns] int32."""
    return integer_product(x, unpacked(packed, columns, x.shape[1]))


@int8_product.register_fake
def _(x: Tensor, packed: Tensor, columns: int) -> Tensor:
    del packed
    return x.new_empty((x.shape[0], columns), dtype=torch.int32)


def pack(weight: Tensor) -> Tensor:
    """weight [columns, depth] int8 → [panels of 16 columns, pairs, 16, 2]; pairs are even, filled up with zeros."""
    columns, depth = weight.shape
    padded = functional.pad(weight, (0, -depth % _DEPTH, 0, -columns % _COLUMNS))
    panels = padded.reshape(padded.shape[0] // _COLUMNS, _COLUMNS, padded.shape[1] // 2, 2)
    return panels.permute(0, 2, 1, 3).contiguous()


def unpacked(packed: Tensor, columns: int, depth: int) -> Tensor:
    """What was packed, as [depth, columns]."""
    return packed.permute(1, 3, 0, 2).reshape(packed.shape[1] * 2, packed.shape[0] * _COLUMNS)[:depth, :columns]


def with_kernel(stage: Program) -> Program:
    """The stage with this kernel for each int8 product with a weight of its own."""
    makers = {name: step for step in stage.steps for name in step.outputs if name}
    values, weights, steps = dict(stage.values), dict(stage.weights), []
    for step in stage.steps:
        weight = _weight(step, stage, makers)
        if weight is None:
            steps.append(step)
            continue
        name = f"{weight} packed"
        if name not in weights:
            weights[name] = pack(stage.weights[weight])
            values[name] = Value(torch.int8, tuple(weights[name].shape), weights[name].stride())
        columns = stage.weights[weight].shape[0]
        operator = torch.ops.shardline.int8_product.default
        steps.append(replace(step, operator=operator, args=(step.args[0], Ref(name), columns), kwargs={}))
    return replace(stage, values=values, weights=weights, steps=tuple(steps)).without_dead_steps()


def _weight(step: Step, stage: Program, makers: Mapping[str, Step]) -> str | None:
    """The name of the weight [columns, depth] whose transpose is the right factor of a product of int8 matrices."""
    if step.operator is not torch.ops.aten._int_mm.default:
        return None
    maker = makers.get(step.args[1].name)
    if maker is None or maker.operator not in _TRANSPOSED:
        return None
    name: str = maker.args[0].name
    return name if name in stage.weights and stage.weights[name].dim() == 2 else None


def options() -> dict[str, Any]:
    """What AOTInductor is told, so that the generated code has the kernel and calls it directly."""
    source = _SOURCE.read_text(encoding="utf-8")
    declaration = (
        f"AOTITorchError {_FUNCTION}(AtenTensorHandle x, AtenTensorHandle packed, int64_t columns, "
        "AtenTensorHandle* result)"
    )
    # Each of these is written after `extern` in a block of C linkage: the first leaves that linkage for the C++ source.
    shims = [f'"C++" {{\n{source}\n}}', declaration]
    return {"aot_inductor.custom_ops_to_c_shims": {torch.ops.shardline.int8_product.default: shims}}
