import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.nouns import Forecast, Load
from worker.standing import Standing

SECONDS = st.floats(0, 100, allow_nan=False)


def told(seconds_per_row: float, queued_rows: int = 0) -> Standing:
    standing = Standing(0.0)
    standing.told(Load(queued_rows, seconds_per_row), 0.0)
    return standing


def test_what_waits_there_and_what_a_row_takes_there_both_count() -> None:
    busy, slow, idle = (
        told(queued_rows=10, seconds_per_row=0.01),
        told(queued_rows=0, seconds_per_row=0.1),
        told(queued_rows=0, seconds_per_row=0.01),
    )
    assert busy.expected_wait(0.0, 0.0) == pytest.approx(0.11, rel=1e-3)
    assert slow.expected_wait(0.0, 0.0) == pytest.approx(0.1, rel=1e-3)
    assert idle.expected_wait(0.0, 0.0) == pytest.approx(0.01, rel=1e-3)


def test_an_old_figure_counts_less_and_less() -> None:
    slow = told(seconds_per_row=1.0)
    assert slow.expected_wait(3.0, 3.0) == pytest.approx(1 / 8, rel=1e-3)


def test_answers_that_come_late_count_and_are_forgotten() -> None:
    standing = told(seconds_per_row=0.01)
    before = standing.expected_wait(0.0, 0.0)
    standing.answered(standing.sent(1, 0.0), 1.0)
    standing.ended(1)
    assert standing.expected_wait(1.0, 1.0) > before + 0.1
    assert standing.expected_wait(12.0, 12.0) < before


def test_a_request_that_has_no_answer_yet_counts_before_it_gets_one() -> None:
    standing = told(seconds_per_row=0.001)
    standing.sent(1, 0.0)
    assert standing.expected_wait(2.0, oldest=0.0) > 2.0


def test_the_finish_that_a_replica_tells_counts_what_was_sent_since_and_the_time_that_went_by() -> None:
    standing = Standing(0.0)
    standing.told(Load(forecast=Forecast(0.5, 0.01)), 0.0)
    assert standing.expected_finish(0.0, 1) == pytest.approx(0.5)
    standing.sent(10, 0.0)
    assert standing.expected_finish(0.0, 5) == pytest.approx(0.5 + 14 * 0.01)
    assert standing.expected_finish(0.3, 1) == pytest.approx(0.2 + 10 * 0.01)
    standing.told(Load(forecast=Forecast(0.6, 0.01)), 0.3)
    assert standing.expected_finish(0.3, 1) == pytest.approx(0.6)
    assert Standing(0.0).expected_finish(0.0, 100) == 0.0, "nothing was told"


def test_a_finish_that_was_told_long_ago_never_comes_below_what_a_row_takes() -> None:
    standing = Standing(0.0)
    standing.told(Load(forecast=Forecast(0.5, 0.01, 0.04)), 0.0)
    assert standing.expected_finish(10.0, 1) == pytest.approx(0.04)
    assert standing.least_finish(1) == pytest.approx(0.04)
    assert standing.least_finish(5) == pytest.approx(0.04 + 4 * 0.01)
    assert Standing(0.0).least_finish(8) == 0.0, "nothing was told"


def test_one_that_fails_where_others_do_not_rests_and_a_success_on_trial_ends_that() -> None:
    standing = Standing(0.0)
    assert [standing.failed(0.0, trial=standing.trial(0.0)) for _ in range(5)] == [False] * 4 + [True]
    assert standing.resting_until == 1.0
    assert standing.trial(1.0)
    assert standing.resting_until == 2.0, "one trial at a time"
    standing.failed(1.1, trial=True)
    assert standing.resting_until == pytest.approx(3.1)
    assert standing.trial(3.2)
    standing.succeeded()
    assert standing.resting_until == 0.0
    assert not standing.trial(3.3)


@given(st.lists(st.tuples(st.sampled_from("satof"), SECONDS), max_size=40), SECONDS)
def test_the_wait_is_never_negative_and_more_work_never_makes_it_less(
    events: list[tuple[str, float]], later: float
) -> None:
    standing, now, due = Standing(0.0), 0.0, 0.0
    for kind, amount in events:
        now += amount / 10
        if kind == "s":
            due = standing.sent(1, now)
        elif kind == "a":
            standing.answered(due, now)
        elif kind == "t":
            standing.told(Load(int(amount), amount / 100), now)
        elif kind == "o" and standing.rows:
            standing.ended(1)
        elif kind == "f":
            standing.failed(now, trial=standing.trial(now))
    now += later
    before = standing.expected_wait(now, now)
    assert before >= 0
    standing.sent(1, now)
    assert standing.expected_wait(now, now) >= before
