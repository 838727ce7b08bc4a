import math
import statistics

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from compressor.evaluation.metrics import mean, perplexity, spearman
from worker.errors import InvalidRequest

PAIRS = st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), min_size=2, max_size=40)


def ranks(values: list[float]) -> list[float]:
    """The definition, one value at a time."""
    return [
        sum(other < value for other in values) + (sum(other == value for other in values) + 1) / 2 for value in values
    ]


def test_all_ranks_alike_are_one_and_reversed_minus_one() -> None:
    ones = np.ones((1, 4))
    assert spearman([1, 2, 3, 4], [10, 20, 25, 99])(ones)[0] == pytest.approx(1)
    assert spearman([1, 2, 3, 4], [9, 7, 2, -5])(ones)[0] == pytest.approx(-1)


@settings(max_examples=100, deadline=None)
@given(PAIRS, st.integers(0, 2**31))
def test_weighed_spearman_is_the_correlation_of_ranks_of_the_copied_records(
    pairs: list[tuple[int, int]], seed: int
) -> None:
    counts = np.random.default_rng(seed).integers(0, 4, size=len(pairs))
    copied = [pair for pair, count in zip(pairs, counts, strict=True) for _ in range(count)]
    a, b = [float(pair[0]) for pair in copied], [float(pair[1]) for pair in copied]
    assume(len(set(a)) > 1 and len(set(b)) > 1)
    expected = statistics.correlation(ranks(a), ranks(b))
    found = spearman([pair[0] for pair in pairs], [pair[1] for pair in pairs])(counts[None].astype(float))
    assert found[0] == pytest.approx(expected, abs=1e-9)


def test_spearman_of_a_constant_is_no_number() -> None:
    assert math.isnan(spearman([1, 1, 1], [1, 2, 3])(np.ones((1, 3)))[0])


def test_perplexity_is_exp_of_the_mean_loss_of_a_token() -> None:
    statistic = perplexity([2.0, 6.0], [1, 3])
    assert statistic(np.ones((1, 2)))[0] == pytest.approx(math.exp(8 / 4))
    assert statistic(np.array([[2.0, 0.0]]))[0] == pytest.approx(math.exp(2))


def test_the_mean_counts_each_record_as_often_as_it_was_drawn() -> None:
    assert mean([1.0, 0.0, 0.5])(np.array([[3.0, 0.0, 1.0]]))[0] == pytest.approx(3.5 / 4)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_a_number_is_refused_with_its_record(value: float) -> None:
    with pytest.raises(InvalidRequest, match=r"values: .* in record 1"):
        spearman([0.0, value, 1.0], [1, 2, 3])
    with pytest.raises(InvalidRequest, match=r"labels: .* in record 2"):
        spearman([0.0, 1.0, 1.0], [1, 2, value])


def test_empty_or_mismatched_numbers_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="values: shape"):
        mean([])
    with pytest.raises(InvalidRequest, match="labels: 1 for 2 values"):
        spearman([1, 2], [1])
    with pytest.raises(InvalidRequest, match="tokens: none"):
        perplexity([0.0], [0])
