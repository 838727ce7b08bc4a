import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor.evaluation.bootstrap import interval, paired_difference
from compressor.evaluation.metrics import mean
from worker.errors import InvalidRequest


def test_the_interval_of_a_mean_is_as_wide_as_theory_says() -> None:
    values = np.random.default_rng(1).normal(3.0, 2.0, size=2000)
    found = interval(mean(values), 2000, resamples=4000)
    half = 1.96 * values.std() / np.sqrt(2000)
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - half, abs=half * 0.1)
    assert found.high == pytest.approx(values.mean() + half, abs=half * 0.1)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    generator = np.random.default_rng(2)
    held = 0
    for _ in range(200):
        found = interval(mean(generator.exponential(1.0, size=200)), 200, level=0.9, resamples=400)
        held += found.low <= 1.0 <= found.high
    assert 165 <= held <= 195  # 0.9 of 200, give or take three standard deviations


def test_a_paired_difference_is_far_surer_than_two_figures() -> None:
    generator = np.random.default_rng(3)
    base = generator.normal(size=500)
    found = base + generator.normal(0.1, 0.01, size=500)
    paired = paired_difference(mean(found), mean(base), 500)
    alone = interval(mean(base), 500)
    assert paired.value == pytest.approx(0.1, abs=0.01)
    assert paired.high - paired.low < (alone.high - alone.low) / 20
    assert paired.low > 0


def test_the_same_seed_gives_the_same_interval_and_another_seed_another() -> None:
    values = np.random.default_rng(4).normal(size=50)
    assert interval(mean(values), 50, seed=7) == interval(mean(values), 50, seed=7)
    assert interval(mean(values), 50, seed=7) != interval(mean(values), 50, seed=8)


def test_a_model_compared_with_itself_differs_by_nothing() -> None:
    values = mean(np.random.default_rng(5).normal(size=50))
    found = paired_difference(values, values, 50)
    assert (found.value, found.low, found.high) == (0.0, 0.0, 0.0)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 1), min_size=2, max_size=60), st.floats(0.5, 0.99))
def test_an_interval_of_a_mean_stays_within_its_values(values: list[int], level: float) -> None:
    found = interval(mean(values), len(values), level=level, resamples=100)
    assert min(values) <= found.low <= found.high <= max(values)


@pytest.mark.parametrize("records", [0, 1])
def test_too_few_records_are_refused(records: int) -> None:
    with pytest.raises(InvalidRequest, match="at least 2"):
        interval(lambda counts: counts.sum(1), records)


def test_a_figure_that_is_not_a_number_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="metric: nan"):
        interval(lambda counts: counts[:, 0] * np.nan, 5)


def test_a_level_that_is_no_probability_is_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"level 95"):
        interval(mean([1.0, 2.0]), 2, level=95)
