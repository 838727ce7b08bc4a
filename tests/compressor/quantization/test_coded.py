from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor.quantization.coded import Bits, CodedWeight
from worker.errors import InvalidRequest

BITS = st.sampled_from(get_args(Bits))
WEIGHTS = {"rows": st.integers(1, 6), "columns": st.integers(1, 70), "seed": st.integers(0, 9999)}


def _weight(rows: int, columns: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@settings(deadline=None, max_examples=100)
@given(bits=BITS, group=st.none() | st.integers(8, 40), **WEIGHTS)
def test_a_row_alone_is_as_in_the_whole(bits: Bits, group: int | None, rows: int, columns: int, seed: int) -> None:
    weight = CodedWeight(_weight(rows, columns, seed), bits, group)
    assert weight.codes.shape == (rows, -(-columns * bits // 8))
    index = torch.arange(rows).flip(0)
    assert torch.equal(weight.rows(index), weight()[index])


@settings(deadline=None, max_examples=60)
@given(group=st.none() | st.integers(8, 40), **WEIGHTS)
def test_eight_bits_are_off_by_at_most_half_a_step(group: int | None, rows: int, columns: int, seed: int) -> None:
    exact = _weight(rows, columns, seed)
    weight = CodedWeight(exact, 8, group)
    size = min(group or columns, columns)
    step = weight.scale.repeat_interleave(size, 1)[:, :columns]
    assert bool(((weight() - exact).abs() <= step / 2 * 1.001).all())


@settings(deadline=None, max_examples=60)
@given(**WEIGHTS)
def test_four_bits_are_no_worse_than_plain_rounding(rows: int, columns: int, seed: int) -> None:
    exact = _weight(rows, columns, seed)
    step = exact.abs().amax(1, keepdim=True) / 7
    plain = (exact / step).round() * step
    found = CodedWeight(exact, 4)()
    assert float((found - exact).square().sum()) <= float((plain - exact).square().sum()) * 1.0001


@settings(deadline=None, max_examples=60)
@given(**WEIGHTS)
def test_one_bit_is_the_sign_and_the_mean_magnitude(rows: int, columns: int, seed: int) -> None:
    exact = _weight(rows, columns, seed)
    expected = torch.where(exact >= 0, 1.0, -1.0) * exact.abs().mean(1, keepdim=True)
    torch.testing.assert_close(CodedWeight(exact, 1)(), expected)


def test_two_bits_are_a_sign_or_nothing() -> None:
    exact = torch.tensor([[1.0, -1.2, 0.1, -0.05, 0.8]])  # mean magnitude 0.63, so below 0.441 is nothing
    torch.testing.assert_close(CodedWeight(exact, 2)(), torch.tensor([[1.0, -1.0, 0.0, 0.0, 1.0]]))


@pytest.mark.parametrize("bits", get_args(Bits))
def test_zeros_stay_near_zero(bits: Bits) -> None:
    assert float(CodedWeight(torch.zeros(3, 9), bits)().abs().max()) < 1e-9


def test_what_is_not_a_number_has_no_code() -> None:
    with pytest.raises(InvalidRequest, match="not a finite number"):
        CodedWeight(torch.tensor([[1.0, float("nan")]]), 4)
