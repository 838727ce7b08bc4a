"""Int8 products in compiled stages, by kernels of our own for x86 processors with AVX2 alone, and with AVX-512 VNNI.

With AVX2 alone PyTorch multiplies int8 matrices with plain loops; with VNNI it lays the weights out anew for each
product. A kernel's source becomes part of the code that AOTInductor generates, so that a package needs nothing but
itself. What is not known here: what is done before and after a product; the compiler fuses that as it does elsewhere.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional

from worker.integer_product import integer_product
from worker.processor import lacks_int8_products, vector_flags
from worker.program import Program, Ref, Step, Value

_FUNCTION: Final = "aoti_torch_cpu_int8_product"
CALL: Final = f"AOTI_TORCH_ERROR_CODE_CHECK({_FUNCTION}(".encode()
"""What the generated code has where it calls a kernel; the kernel itself is in it in any case."""

_MULTIPLE: Final = 4
"""Packed weights are filled up with zeros to a depth that is a multiple of this."""
_TRANSPOSED: Final = frozenset({torch.ops.aten.t.default, torch.ops.aten.permute.default, torch.ops.aten.transpose.int})


@dataclass(frozen=True, slots=True)
class Kernel:
    """How weights are packed for a kernel: panels of `columns`, in which so many numbers of a column lie `together`.

    offset: is added to the weights, which are unsigned then.
    """

    source: str
    columns: int
    together: int
    offset: int


AVX2: Final = Kernel("avx2_kernel.cpp", columns=16, together=2, offset=0)
VNNI: Final = Kernel("vnni_kernel.cpp", columns=64, together=4, offset=128)


def kernel_for(flags: tuple[str, ...], capability: str) -> Kernel | None:
    """The kernel that beats PyTorch's own product on a processor with these flags; None: there is none.

    capability: as `torch.backends.cpu.get_cpu_capability` says.
    """
    if lacks_int8_products(flags, capability):
        return AVX2
    return VNNI if capability == "AVX512" and "avx512_vnni" in flags and "amx_int8" not in flags else None


def kernel_here() -> Kernel | None:
    """`kernel_for` this machine."""
    return kernel_for(vector_flags(), torch.backends.cpu.get_cpu_capability())


@torch.library.custom_op("shardline::int8_product", mutates_args=(), tags=(torch.Tag.needs_contiguous_strides,))
def int8_product(x: Tensor, packed: Tensor, columns: int) -> Tensor:
    """x [rows, depth] int8 times packed weights (see `pack`) → [rows, columns] int32."""
    return integer_product(x, unpacked(packed, columns, x.shape[1]))


@int8_product.register_fake
def _(x: Tensor, packed: Tensor, columns: int) -> Tensor:
    del packed
    return x.new_empty((x.shape[0], columns), dtype=torch.int32)


def pack(weight: Tensor, kernel: Kernel) -> Tensor:
    """weight [columns, depth] int8 → [panels, groups, `kernel.columns`, `kernel.together`], filled up with zeros."""
    columns, depth = weight.shape
    padded = functional.pad(weight, (0, -depth % _MULTIPLE, 0, -columns % kernel.columns))
    if kernel.offset:
        padded = (padded.to(torch.int16) + kernel.offset).to(torch.uint8)
    groups = padded.shape[1] // kernel.together
    panels = padded.reshape(padded.shape[0] // kernel.columns, kernel.columns, groups, kernel.together)
    return panels.permute(0, 2, 1, 3).contiguous()


def unpacked(packed: Tensor, columns: int, depth: int) -> Tensor:
    """What was packed, as [depth, columns]."""
    panels, groups, wide, together = packed.shape
    weight = packed.permute(1, 3, 0, 2).reshape(groups * together, panels * wide)[:depth, :columns]
    return (weight.to(torch.int16) - VNNI.offset).to(torch.int8) if packed.dtype == torch.uint8 else weight


def with_kernel(stage: Program, kernel: Kernel) -> Program:
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
            weights[name] = pack(stage.weights[weight], kernel)
            values[name] = Value(weights[name].dtype, tuple(weights[name].shape), weights[name].stride())
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


def options_of(kernel: Kernel) -> dict[str, Any]:
    """What AOTInductor is told, so that the generated code has the kernel and calls it directly."""
    parts = ("int8_matrices.cpp", kernel.source, "int8_product.cpp")
    source = "\n".join((Path(__file__).parent / part).read_text(encoding="utf-8") for part in parts)
    declaration = (
        f"AOTITorchError {_FUNCTION}(AtenTensorHandle x, AtenTensorHandle packed, int64_t columns, "
        "AtenTensorHandle* result)"
    )
    # Each of these is written after `extern` in a block of C linkage: the first leaves that linkage for the C++ source.
    shims = [f'"C++" {{\n{source}\n}}', declaration]
    return {"aot_inductor.custom_ops_to_c_shims": {torch.ops.shardline.int8_product.default: shims}}
