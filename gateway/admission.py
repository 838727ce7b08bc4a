"""Whether a request may come in, and how long it may take. Decides; does no I/O."""

import asyncio
from types import TracebackType

from worker.errors import DeadlineExceeded, Overloaded


class Admission:
    """The bound on what this process holds for one model version: `with admission:` around the work.

    What comes in goes out, however it ends. `limit` 0: no bound. `predicts`: `check` refuses what would be late.
    """

    __slots__ = ("_emptied", "_label", "inflight", "limit", "predicts")

    def __init__(self, label: str, limit: int) -> None:
        self._label = label
        self.limit = limit
        self.inflight = 0
        self.predicts = True
        self._emptied: asyncio.Event | None = None

    def __enter__(self) -> None:
        """Raises `Overloaded` where the bound is reached; nothing is counted then."""
        if self.inflight >= self.limit > 0:
            raise Overloaded(f"{self._label} already has {self.limit} requests in flight here; try again later")
        self.inflight += 1

    def check(self, expected_s: float, allowed_s: float) -> None:
        """Raises `Overloaded` where a request that is allowed to take `allowed_s` is expected to take longer.

        Under too much load whatever is computed for it would be in vain, and would make others late. One that finds
        nothing in flight comes in whatever is expected: where nothing is asked, nothing is learned either.
        """
        if self.predicts and self.inflight and expected_s > allowed_s:
            raise Overloaded(
                f"{self._label} would answer in about {1e3 * expected_s:.0f} ms, and the request has "
                f"{1e3 * allowed_s:.0f} ms; try again later"
            )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.inflight -= 1
        if self._emptied is not None and not self.inflight:
            self._emptied.set()

    async def idle(self) -> None:
        """Returns when nothing is in flight; every request has a deadline. For when no more come in."""
        if self.inflight:
            self._emptied = asyncio.Event()
            await self._emptied.wait()


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
