"""Products of int8 matrices on processors for which PyTorch has only plain loops (see `worker.processor`).

Importing it puts a product in fp32 in the place of those loops: the same numbers, 20 times faster. Compiled stages have
a kernel of their own (`compressor/packaging/int8_product.py`), which is faster still.
"""

import warnings
from typing import Final

import torch

from worker.processor import lacks_int8_products_here

_EXACT_DEPTH: Final = (1 << 24) // (128 * 128)
"""So many products of int8 numbers add up to no more than 2^24, below which fp32 holds every whole number."""


def integer_product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x [rows, depth] int8, weight [depth, columns] int8 → [rows, columns] int32, exactly, by way of fp32."""
    result = x.new_zeros((x.shape[0], weight.shape[1]), dtype=torch.int32)
    with torch.autocast(x.device.type, enabled=False):  # which would multiply in 16 bits
        for start in range(0, x.shape[1], _EXACT_DEPTH):
            part = slice(start, start + _EXACT_DEPTH)
            result += (x[:, part].float() @ weight[part].float()).to(torch.int32)
    return result


def _checked(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """As PyTorch's own, with its errors."""
    if x.dim() != 2 or weight.dim() != 2 or x.shape[1] != weight.shape[0]:
        raise RuntimeError(f"_int_mm takes [m, k] and [k, n], not {tuple(x.shape)} and {tuple(weight.shape)}")
    if x.dtype != torch.int8 or weight.dtype != torch.int8:
        raise RuntimeError(f"_int_mm takes int8 matrices, not {x.dtype} and {weight.dtype}")
    return integer_product(x, weight)


if lacks_int8_products_here():
    _LIBRARY: Final = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Warning only once for all operators")  # it says that a kernel is replaced
        _LIBRARY.impl("_int_mm", _checked, "CPU", allow_override=True)  # type: ignore[no-untyped-call]
