"""Stand-ins on CPUs for cuSPARSELt's operators, with what is known of them: which sizes they take, and what comes out.

Weights are packed as CUTLASS has them, by PyTorch's own reference; how cuSPARSELt does it is not known.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.sparse._semi_structured_conversions import (
    sparse_semi_structured_from_dense_cutlass,
    sparse_semi_structured_to_dense_cutlass,
)


def compress(weight: Tensor) -> Tensor:
    """weight [out, in], 2 of 4 → [out, in * 9 / 16]: values, and where they stand."""
    assert weight.is_contiguous()
    values, places = sparse_semi_structured_from_dense_cutlass(weight)  # type: ignore[no-untyped-call]
    return torch.cat((values, places.view(weight.dtype)), dim=1)


def product(  # noqa: PLR0917 -- as PyTorch calls it
    packed: Tensor,
    x: Tensor,
    bias: Tensor | None = None,
    alpha: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    transpose_result: bool = False,
    alg_id: int = 0,
    split_k: int = 1,
    split_k_mode: int = -1,
) -> Tensor:
    """packed of [out, in], x [in, rows] → [out, rows], or its transpose."""
    assert (alpha, out_dtype, alg_id, split_k, split_k_mode) == (None, None, 0, 1, -1)
    taken, rows = x.shape
    assert rows % 8 == 0
    assert packed.dtype == x.dtype == (x if bias is None else bias).dtype
    values, places = packed[:, : taken // 2].contiguous(), packed[:, taken // 2 :].contiguous()
    weight: Tensor = sparse_semi_structured_to_dense_cutlass(values, places.view(torch.int16))  # type: ignore[no-untyped-call]
    y = weight @ x
    y = y if bias is None else y + bias[:, None]
    return y.t().contiguous() if transpose_result else y


@contextmanager
def cusparselt_on_cpu() -> Iterator[None]:
    """Within it, PyTorch has these for tensors on the CPU."""
    library = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]
    try:
        library.impl("_cslt_compress", compress, "CPU")  # type: ignore[no-untyped-call]
        library.impl("_cslt_sparse_mm", product, "CPU")  # type: ignore[no-untyped-call]
        yield
    finally:
        library._destroy()  # type: ignore[no-untyped-call]
