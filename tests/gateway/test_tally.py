import asyncio

import pytest

from gateway.tally import Tally
from protos import control_pb2 as pb
from worker.errors import DeadlineExceeded, Internal, InvalidRequest, NotFound, Overloaded, Unavailable


def told(tally: Tally) -> pb.LaneReport:
    return tally.report("echo", "1", 2, ready=True)


@pytest.mark.parametrize(
    ("error", "counted"),
    [
        (Overloaded("full"), "refused"),
        (DeadlineExceeded("late"), "missed_deadline"),
        (Unavailable("gone"), "failed"),
        (Internal("broken"), "failed"),
        (RuntimeError("a bug"), "failed"),
        (InvalidRequest("wrong"), ""),
        (NotFound("what"), ""),
        (asyncio.CancelledError(), ""),
    ],
)
def test_whatever_ends_a_request_it_is_no_longer_held_and_counts_as_what_it_was(
    error: BaseException, counted: str
) -> None:
    tally = Tally()

    def ask() -> None:
        with tally.request(3):
            assert (told(tally).inflight, tally.inflight_rows) == (1, 3)
            raise error

    with pytest.raises(type(error)):
        ask()
    report = told(tally)
    assert (report.inflight, tally.inflight_rows, report.arrived_rows) == (0, 0, 3)
    counts = {name: getattr(report, name) for name in ("answered", "failed", "refused", "missed_deadline")}
    assert counts == {name: int(name == counted) for name in counts}


def test_an_answer_is_counted_with_how_long_it_took() -> None:
    tally = Tally()
    with tally.request(1):
        pass
    assert (told(tally).answered, sum(told(tally).took.values())) == (1, 1)


def test_only_what_waits_for_a_first_replica_is_unplaced() -> None:
    tally = Tally()
    with tally.request(5):
        assert told(tally).unplaced_rows == 0
        assert tally.report("echo", "1", 2, ready=False).unplaced_rows == 5
