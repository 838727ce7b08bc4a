import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from worker.nouns import Forecast
from worker.outlook import Held, Outlook, ServiceTime

ROWS = st.integers(1, 64)
SECONDS = st.floats(1e-5, 10)


@given(st.lists(ROWS, min_size=2, max_size=40), st.floats(0, 1), st.floats(1e-4, 0.1), ROWS)
def test_a_straight_line_is_found_again(sizes: list[int], fixed: float, per_row: float, asked: int) -> None:
    assume(max(sizes[-20:]) >= 2 * min(sizes[-20:]))
    service = ServiceTime()
    for rows in sizes:
        service.after(rows, fixed + per_row * rows)
    assert service.of(asked) == pytest.approx(fixed + per_row * asked, rel=1e-3, abs=1e-6)


@given(st.lists(st.tuples(ROWS, SECONDS), max_size=40), ROWS, ROWS)
def test_it_is_never_negative_and_never_less_for_more_rows(
    batches: list[tuple[int, float]], one: int, other: int
) -> None:
    service = ServiceTime()
    for rows, seconds in batches:
        service.after(rows, seconds)
    assert 0 <= service.of(min(one, other)) <= service.of(max(one, other)) + 1e-12


def test_batches_of_one_size_do_not_unlearn_what_other_sizes_take() -> None:
    service = ServiceTime()
    for rows in (1, 16) * 20:
        service.after(rows, 0.010 + 0.001 * rows)
    for _ in range(500):
        service.after(16, 0.026)
    assert service.of(1) == pytest.approx(0.011, rel=0.05)
    assert service.of(16) == pytest.approx(0.026, rel=0.01)


def outlook() -> Outlook:
    """Batches of up to 8 rows, 10 ms and 5 ms a row."""
    one = Outlook(8)
    for rows in (1, 2, 4, 8):
        one.computed(rows, 0.010 + 0.005 * rows)
    return one


def test_an_idle_worker_answers_after_its_own_and_the_later_stages_time() -> None:
    told = outlook().tell(Held(0, 0, 0.0), Forecast(0.040, 0.001), 0.040, now=1.0)
    assert told.finish_s == told.least_s == pytest.approx(0.015 + 0.040, rel=0.01)


def test_what_waits_goes_in_full_batches() -> None:
    told = outlook().tell(Held(80, 8, 0.020), Forecast(), 0.0, now=1.0)
    assert told.pace_s == pytest.approx(0.050 / 8)
    assert told.finish_s == pytest.approx((0.050 - 0.020) + 10 * 0.050 + 0.050, rel=0.01)


def test_a_later_stage_that_is_slower_sets_the_pace() -> None:
    told = outlook().tell(Held(80, 0, 0.0), Forecast(0.4, 0.02), 0.1, now=1.0)
    assert told.pace_s == 0.02
    assert told.finish_s == pytest.approx(80 * 0.02 + 0.050 + 0.4, rel=0.01)
    assert told.least_s == pytest.approx(0.015 + 0.1, rel=0.01)


def test_what_keeps_a_worker_idle_that_has_work_counts_and_is_forgotten() -> None:
    one = outlook()
    for _ in range(50):
        one.was_idle(0.150, now=1.0)
    assert one.tell(Held(80, 0, 0.0), Forecast(), 0.0, now=1.0).pace_s == pytest.approx(0.200 / 8, rel=0.01)
    assert one.tell(Held(80, 0, 0.0), Forecast(), 0.0, now=13.0).pace_s == pytest.approx(0.050 / 8, rel=0.01)
    one.was_idle(0.0, now=13.0)
    assert one.tell(Held(80, 0, 0.0), Forecast(), 0.0, now=13.0).pace_s == pytest.approx(0.050 / 8, rel=0.01)


def test_what_is_computed_gets_to_a_slower_stage_before_what_comes_now() -> None:
    slow = Forecast(0.100, 0.100 / 8)
    behind = outlook().tell(Held(0, 8, 0.0), slow, 0.1, now=1.0).finish_s
    assert behind == pytest.approx(0.050 + 0.100 + 0.100, rel=0.01)
    quick = Forecast(0.010, 0.010 / 8)
    assert outlook().tell(Held(0, 8, 0.0), quick, 0.01, now=1.0).finish_s == pytest.approx(0.075, rel=0.01)


def test_a_worker_that_answers_later_than_it_thought_thinks_of_that_until_it_has_had_no_news_for_long() -> None:
    one = outlook()
    assert one.careful_s(8, Forecast(), 1.0) == one.least_s(8, Forecast()) == pytest.approx(0.050, rel=0.01)
    for number in range(40):
        one.answered(0.020, 1.0 + number / 100)
    assert one.careful_s(8, Forecast(), 1.4) == pytest.approx(0.070, rel=0.02)
    assert one.careful_s(8, Forecast(), 11.4) == pytest.approx(0.050, rel=0.01)
    for number in range(40):
        one.answered(-0.020, 20.0 + number / 100)
    assert one.careful_s(8, Forecast(), 20.4) == pytest.approx(0.050, rel=0.01), "sooner is no reason to hurry"
    for number in range(100):
        one.answered(0.040 * (number % 2), 30.0 + number / 100)
    assert 0.080 < one.careful_s(8, Forecast(), 31.0) < 0.110, "most of them are not later than that"


@given(
    st.lists(st.tuples(ROWS, SECONDS), max_size=20),
    *(st.integers(0, 1000), st.integers(0, 1000), st.integers(0, 64), st.floats(0, 10)),
)
def test_more_that_waits_never_makes_it_sooner(
    batches: list[tuple[int, float]], one: int, other: int, computing: int, for_s: float
) -> None:
    found = Outlook(16)
    for rows, seconds in batches:
        found.computed(rows, seconds)
        found.was_idle(seconds, 0.0)
    less, more = (
        found.tell(Held(rows, computing, for_s), Forecast(for_s, 0.01), 0.0, 0.5).finish_s
        for rows in sorted((one, other))
    )
    assert 0 <= less <= more + 1e-9


def test_a_batch_that_is_begun_now_takes_its_own_time_and_the_later_stages_which_compute_what_they_have_meanwhile() -> (
    None
):
    one = outlook()
    assert one.least_s(1, Forecast()) == pytest.approx(0.015, rel=0.01)
    assert one.least_s(100, Forecast()) == pytest.approx(0.050, rel=0.01), "no batch has more than eight rows"
    assert one.least_s(8, Forecast(0.03, 0.001, 0.02)) == pytest.approx(0.070, rel=0.01)
    assert one.least_s(8, Forecast(0.4, 0.001, 0.02)) == 0.4, "it will wait there"
