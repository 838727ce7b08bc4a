from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.histogram import BUCKETS, bucket_of, quantile, seconds_of


@given(st.floats(20e-6, 20_000))
def test_a_bucket_says_how_long_it_took_within_seven_percent(seconds: float) -> None:
    assert seconds_of(bucket_of(seconds)) == pytest.approx(seconds, rel=0.07)


@given(st.floats(0, 1e6), st.floats(0, 1e6))
def test_longer_is_never_in_an_earlier_bucket(one: float, other: float) -> None:
    assert 0 <= bucket_of(min(one, other)) <= bucket_of(max(one, other)) < BUCKETS


def test_a_negative_duration_is_in_the_first_bucket() -> None:
    assert bucket_of(-1.0) == 0


@given(st.lists(st.floats(1e-3, 10), min_size=1, max_size=200), st.sampled_from([0.5, 0.95, 0.99]))
def test_quantiles_are_near_the_true_ones(durations: list[float], share: float) -> None:
    counts = Counter(bucket_of(duration) for duration in durations)
    rank = next(duration for place, duration in enumerate(sorted(durations), 1) if place >= share * len(durations))
    assert quantile(counts, share) == pytest.approx(rank, rel=0.07)


def test_nothing_took_no_time() -> None:
    assert quantile({}, 0.5) == 0.0
