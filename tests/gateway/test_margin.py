import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.margin import LEAST, MOST, Margin


def test_a_burst_of_misses_is_one_cut() -> None:
    margin = Margin()
    for number in range(100):
        margin.missed(10.0 + number / 1000, took_s=0.5)
    assert margin.share == pytest.approx(0.85 * MOST)
    margin.missed(10.6, took_s=0.5)
    assert margin.share < 0.73 * MOST


def test_it_is_regained_in_seconds_however_many_answers_there_are() -> None:
    for answers_a_second in (1, 1000):
        margin = Margin()
        margin.missed(0.0, 0.1)
        for number in range(6 * answers_a_second):
            margin.in_time((number + 1) / answers_a_second)
        assert margin.share == MOST


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 10), st.floats(0, 100)), max_size=200))
def test_it_stays_between_its_bounds(events: list[tuple[bool, float, float]]) -> None:
    margin, now = Margin(), 0.0
    for missed, later, took in events:
        now += later
        before = margin.share
        if missed:
            margin.missed(now, took)
            assert margin.share <= before
        else:
            margin.in_time(now)
            assert margin.share >= before
        assert LEAST <= margin.share <= MOST


@given(st.floats(0.25, 0.85), st.floats(0.05, 1.0))
def test_it_settles_just_below_what_holds(true_share: float, round_s: float) -> None:
    """Requests that come in with more than `true_share` of their deadline expected miss it; the others do not."""
    margin, now, misses = Margin(), 0.0, 0
    for number in range(4000):
        now += 0.01
        if margin.share > true_share:
            margin.missed(now, round_s)
            misses += number > 2000
        else:
            margin.in_time(now)
    assert 0.8 * true_share <= margin.share <= true_share + 0.04
