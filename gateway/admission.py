"""Whether a request may come in, and how long it may take. Decides; does no I/O."""

import asyncio
from time import monotonic
from types import TracebackType
from typing import Final

from gateway.margin import Margin
from worker.errors import DeadlineExceeded, Overloaded

_NEARLY: Final = 0.95
"""An answer that took this share of what it may take is late for a client that counts the way to us too."""


class Refused(Overloaded):
    """By this process alone: no worker was asked."""


class Admission:
    """The bound on what this process holds for one model version: `with admission.request(...):` around the work.

    What comes in goes out, however it ends. `limit` 0: no bound. `predicts`: refuses what would be late.
    """

    __slots__ = ("_emptied", "_label", "inflight", "limit", "margin", "predicts")

    def __init__(self, label: str, limit: int) -> None:
        self._label = label
        self.limit = limit
        self.inflight = 0
        self.predicts = True
        self.margin = Margin()
        self._emptied: asyncio.Event | None = None

    def request(self, expected_s: float, allowed_s: float) -> "_Request":
        """A request that is expected to take `expected_s` and allowed to take `allowed_s`.

        Entering raises `Refused` where the bound is reached or the answer would come too late, and counts nothing
        then. Under too much load whatever is computed for a late one would be in vain, and would make others late. One
        that finds nothing in flight comes in whatever is expected: where nothing is asked, nothing is learned either.
        """
        return _Request(self, expected_s, allowed_s)

    def enter(self, expected_s: float, allowed_s: float) -> None:
        if self.inflight >= self.limit > 0:
            raise Refused(f"{self._label} already has {self.limit} requests in flight here; try again later")
        if self.predicts and self.inflight and expected_s > allowed_s * self.margin.share:
            raise Refused(
                f"{self._label} would answer in about {1e3 * expected_s / self.margin.share:.0f} ms, and the request "
                f"has {1e3 * allowed_s:.0f} ms; try again later"
            )
        self.inflight += 1

    def leave(self) -> None:
        self.inflight -= 1
        if self._emptied is not None and not self.inflight:
            self._emptied.set()

    async def idle(self) -> None:
        """Returns when nothing is in flight; every request has a deadline. For when no more come in."""
        if self.inflight:
            self._emptied = asyncio.Event()
            await self._emptied.wait()


class _Request:
    """Learns from how it went: a prediction that held, or one that did not."""

    __slots__ = ("_admission", "_allowed_s", "_began", "_expected_s")

    def __init__(self, admission: Admission, expected_s: float, allowed_s: float) -> None:
        self._admission = admission
        self._expected_s = expected_s
        self._allowed_s = allowed_s

    def __enter__(self) -> None:
        self._admission.enter(self._expected_s, self._allowed_s)
        self._began = monotonic()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._admission.leave()
        if not 0 < self._expected_s <= self._allowed_s:
            return  # nothing was predicted, or that it would be late
        now = monotonic()
        took_s = now - self._began
        if took_s > _NEARLY * self._allowed_s or isinstance(error, DeadlineExceeded):
            # Given up early, it tells no more than if it had come late: those that were let in with it may all be.
            self._admission.margin.missed(now, max(took_s, self._allowed_s))
        elif error is None:
            self._admission.margin.in_time(now)


def seconds_allowed(client_s: float | None, timeout_s: float | None, default_s: float) -> float:
    """The least of the client's gRPC deadline, its `timeout` parameter (None: not given) and the model's own.

    A request may ask for less than the model's own, never for more. Raises `DeadlineExceeded` where nothing is left.
    """
    allowed = default_s
    if client_s is not None and client_s < allowed:
        allowed = client_s
    if timeout_s is not None and timeout_s < allowed:
        allowed = timeout_s
    if allowed <= 0:
        raise DeadlineExceeded("the request's deadline had passed when it arrived")
    return allowed
