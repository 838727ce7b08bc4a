import asyncio

import pytest

from gateway.admission import Admission, seconds_allowed
from worker.errors import DeadlineExceeded, Internal, Overloaded


def test_the_bound_refuses_what_comes_over_it_and_counts_nothing_for_it() -> None:
    admission = Admission("model 'echo' version 1", 2)
    with admission, admission:
        with pytest.raises(Overloaded, match="model 'echo' version 1 already has 2 requests in flight"):
            admission.__enter__()
        assert admission.inflight == 2
    assert admission.inflight == 0


def test_what_fails_goes_out_too() -> None:
    admission = Admission("m", 1)
    for error in (Internal, asyncio.CancelledError, KeyboardInterrupt):
        with pytest.raises(error), admission:
            raise error
        assert admission.inflight == 0


def test_a_limit_of_zero_is_no_bound() -> None:
    admission = Admission("m", 0)
    with admission, admission, admission:
        assert admission.inflight == 3


async def test_idle_waits_for_what_is_in_flight() -> None:
    admission = Admission("m", 2)
    await admission.idle()
    with admission:
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
