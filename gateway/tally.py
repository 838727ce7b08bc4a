"""What one process counts of one pipeline, for the controller: it scales and judges roll-outs by it."""

from time import perf_counter
from types import TracebackType

from protos import control_pb2 as pb
from worker.errors import DeadlineExceeded, DeviceFailed, Internal, Overloaded, ShardlineError, Unavailable
from worker.histogram import bucket_of


class Tally:
    """`with tally.request(rows):` around a request's admission and its call; what comes in goes out, however it ends.

    Counts are since the start. A request that was cancelled, or was wrong in itself, is counted only as arrived.
    """

    __slots__ = (
        "answered",
        "arrived_rows",
        "failed",
        "inflight",
        "inflight_rows",
        "missed",
        "refusal_took",
        "refused",
        "took",
    )

    def __init__(self) -> None:
        self.arrived_rows = self.inflight = self.inflight_rows = 0
        self.answered = self.failed = self.refused = self.missed = 0
        self.took: dict[int, int] = {}
        self.refusal_took: dict[int, int] = {}

    def request(self, rows: int) -> "_Request":
        return _Request(self, rows)

    def ended(self, seconds: float, error: BaseException | None) -> None:
        if error is None:
            self.answered += 1
            _count(self.took, seconds)
        elif isinstance(error, Overloaded):
            self.refused += 1
        elif isinstance(error, DeadlineExceeded):
            self.missed += 1
        elif isinstance(error, Unavailable | Internal | DeviceFailed) or (
            isinstance(error, Exception) and not isinstance(error, ShardlineError)
        ):
            self.failed += 1

    def refusal_written(self, seconds: float) -> None:
        """A refusal that no worker was asked for was handed to the socket, so long after the request was read."""
        _count(self.refusal_took, seconds)

    def report(self, model: str, version: str, revision: int, *, ready: bool) -> pb.LaneReport:
        return pb.LaneReport(
            model=model,
            version=version,
            revision=revision,
            inflight=self.inflight,
            unplaced_rows=0 if ready else self.inflight_rows,
            arrived_rows=self.arrived_rows,
            answered=self.answered,
            failed=self.failed,
            refused=self.refused,
            missed_deadline=self.missed,
            took=self.took,
            refusal_took=self.refusal_took,
        )


def _count(histogram: dict[int, int], seconds: float) -> None:
    bucket = bucket_of(seconds)
    histogram[bucket] = histogram.get(bucket, 0) + 1


class _Request:
    __slots__ = ("_began", "_rows", "_tally")

    def __init__(self, tally: Tally, rows: int) -> None:
        self._tally = tally
        self._rows = rows

    def __enter__(self) -> None:
        tally = self._tally
        tally.arrived_rows += self._rows
        tally.inflight += 1
        tally.inflight_rows += self._rows
        self._began = perf_counter()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        tally = self._tally
        tally.inflight -= 1
        tally.inflight_rows -= self._rows
        tally.ended(perf_counter() - self._began, error)
