import asyncio
from contextlib import AbstractContextManager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.admission import Admission, seconds_allowed
from gateway.margin import MOST
from worker.errors import DeadlineExceeded, Internal, Overloaded


def request(admission: Admission) -> AbstractContextManager[None]:
    """One of which nothing is expected."""
    return admission.request(0.0, 1.0)


def test_the_bound_refuses_what_comes_over_it_and_counts_nothing_for_it() -> None:
    admission = Admission("model 'echo' version 1", 2)
    with request(admission), request(admission):
        with pytest.raises(Overloaded, match="model 'echo' version 1 already has 2 requests in flight"):
            request(admission).__enter__()
        assert admission.inflight == 2
    assert admission.inflight == 0


def test_what_fails_goes_out_too() -> None:
    admission = Admission("m", 1)
    for error in (Internal, asyncio.CancelledError, KeyboardInterrupt):
        with pytest.raises(error), request(admission):
            raise error
        assert admission.inflight == 0


def test_a_limit_of_zero_is_no_bound() -> None:
    admission = Admission("m", 0)
    with request(admission), request(admission), request(admission):
        assert admission.inflight == 3


async def test_idle_waits_for_what_is_in_flight() -> None:
    admission = Admission("m", 2)
    await admission.idle()
    with request(admission):
        waiting = asyncio.create_task(admission.idle())
        await asyncio.sleep(0)
        assert not waiting.done()
    await asyncio.wait_for(waiting, 5)


@pytest.mark.parametrize(
    ("client_s", "timeout_s", "default_s", "allowed"),
    [
        (None, None, 30.0, 30.0),
        (5.0, None, 30.0, 5.0),
        (None, 2.0, 30.0, 2.0),
        (5.0, 2.0, 30.0, 2.0),
        (1.0, 2.0, 30.0, 1.0),
        (60.0, 90.0, 30.0, 30.0),
    ],
)
def test_the_least_deadline_holds(
    client_s: float | None, timeout_s: float | None, default_s: float, allowed: float
) -> None:
    assert seconds_allowed(client_s, timeout_s, default_s) == allowed


def test_a_request_that_arrives_too_late_is_not_begun() -> None:
    with pytest.raises(DeadlineExceeded, match="had passed when it arrived"):
        seconds_allowed(0.0, None, 30.0)


def test_what_is_expected_too_late_is_refused_and_told_how_late() -> None:
    admission = Admission("model 'echo' version 1", 0)
    with request(admission), admission.request(0.9, 1.0):
        with pytest.raises(Overloaded, match="would answer in about 1158 ms, and the request has 1000 ms"):
            admission.enter(1.1, 1.0)
        assert admission.inflight == 2


def test_a_plain_queue_refuses_nothing_for_being_late() -> None:
    admission = Admission("m", 0)
    admission.predicts = False
    with request(admission), admission.request(100.0, 1.0):
        assert admission.inflight == 2


def test_predictions_that_did_not_hold_are_trusted_less_and_those_of_being_late_teach_nothing() -> None:
    admission = Admission("m", 0)
    with admission.request(2e-9, 1e-9):
        assert admission.inflight == 1
    assert admission.margin.share == MOST, "it was known to be late, and came in because nothing else was"
    with admission.request(1e-9, 1e-9):
        assert admission.inflight == 1
    assert admission.margin.share < MOST
    with request(admission), pytest.raises(Overloaded):
        admission.enter(0.85, 1.0)


def test_what_a_worker_gives_up_because_it_would_be_late_was_predicted_wrongly_and_what_fails_was_not() -> None:
    admission = Admission("m", 0)
    with pytest.raises(Internal), admission.request(0.5, 1.0):
        raise Internal("the shard failed")
    assert admission.margin.share == MOST
    for _ in range(10):
        with pytest.raises(DeadlineExceeded), admission.request(0.5, 1.0):
            raise DeadlineExceeded("the answer would come after the deadline")
    assert MOST > admission.margin.share > 0.8 * MOST, "however soon it is told, those of one deadline cut once"


@given(st.floats(0, 1e6), st.floats(1e-6, 1e5))
def test_an_idle_model_refuses_nobody_so_that_a_wrong_expectation_cannot_last(expected: float, allowed: float) -> None:
    Admission("m", 1).enter(expected, allowed)


@given(
    expected=st.floats(0, 1e6),
    allowed=st.floats(1e-6, 1e5),
    less_s=st.floats(0, 1e6),
    more_s=st.floats(0, 1e5),
    inflight=st.integers(0, 3),
    misses=st.integers(0, 20),
)
def test_less_to_do_and_a_later_deadline_never_turn_a_yes_into_a_no(
    expected: float, allowed: float, less_s: float, more_s: float, *, inflight: int, misses: int
) -> None:
    def admits(expected_s: float, allowed_s: float) -> bool:
        admission = Admission("m", 0)
        admission.inflight = inflight
        for number in range(misses):
            admission.margin.missed(number, 0.5)
        try:
            admission.enter(expected_s, allowed_s)
        except Overloaded:
            return False
        return True

    if admits(expected, allowed):
        assert admits(min(expected, less_s), allowed)
        assert admits(expected, allowed + more_s)
