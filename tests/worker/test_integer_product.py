import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from worker.integer_product import integer_product
from worker.processor import lacks_int8_products, saturates_int8


@given(st.integers(0, 5), st.integers(0, 2100), st.integers(1, 5), st.integers(0, 2**32))
def test_the_product_by_way_of_fp32_is_exact(rows: int, depth: int, columns: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(-128, 128, (rows, depth), dtype=torch.int8, generator=generator)
    weight = torch.randint(-128, 128, (columns, depth), dtype=torch.int8, generator=generator).t()
    found = integer_product(x, weight)
    assert found.dtype == torch.int32
    assert torch.equal(found, (x.double() @ weight.double()).to(torch.int32))


def test_the_largest_sums_are_exact() -> None:
    x = torch.full((2, 4097), -128, dtype=torch.int8)
    assert integer_product(x, x.t()).tolist() == [[4097 * 128 * 128] * 2] * 2


def test_pytorchs_own_product_refuses_what_does_not_fit() -> None:
    with pytest.raises(RuntimeError):
        torch._int_mm(torch.zeros(2, 3, dtype=torch.int8), torch.zeros(4, 2, dtype=torch.int8))
    with pytest.raises((RuntimeError, ValueError)):
        torch._int_mm(torch.zeros(2, 3), torch.zeros(3, 2))


@pytest.mark.parametrize(
    ("flags", "capability", "lacks", "saturates"),
    [
        (("avx", "avx2", "fma"), "AVX2", True, True),
        (("avx", "avx2", "avx_vnni"), "AVX2", False, False),
        (("avx2", "avx512_vnni", "avx512f"), "AVX512", False, False),
        (("avx2", "avx512f"), "AVX512", False, True),
        (("avx",), "DEFAULT", False, False),
        ((), "DEFAULT", False, False),
    ],
)
def test_which_processors_lack_int8_products(
    flags: tuple[str, ...], capability: str, lacks: bool, saturates: bool
) -> None:
    assert lacks_int8_products(flags, capability) is lacks
    assert saturates_int8(flags) is saturates
