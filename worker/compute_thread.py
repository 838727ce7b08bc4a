"""A thread that computes one job after the other, and asks by itself what to go on with.

A thread that its event loop tells what comes next is idle until the loop gets to run: 0.2 ms a batch, and about 1 ms
where all cores are busy.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class Job(Generic[T]):
    """result: done once the job has ended, or failed. about: whatever who made it wants to know of it.

    began: when, by `time.monotonic`; then: what the thread went on with, which has begun too. Both are known once
    `result` is done.
    """

    work: Callable[[], T]
    result: asyncio.Future[T]
    about: Any = None
    began: float = 0.0
    then: "Job[Any] | None" = None

    def succeeded(self, value: T) -> None:
        if not self.result.done():  # else nobody waits for it any more
            self.result.set_result(value)

    def failed(self, error: BaseException) -> None:
        if isinstance(error, StopIteration):  # a future takes none
            error = RuntimeError(f"StopIteration: {error}")
        if not self.result.done():
            self.result.set_exception(error)


class ComputeThread:
    """Belongs to one event loop. `set_up` is called first, in the thread.

    At the end of a job the thread calls `following`, while the loop runs, and computes what that gives; None: it waits
    for a `start`. It asks again only once the loop said `went_on`, so that it is never given the same work twice.
    """

    def __init__(
        self, name: str, set_up: Callable[[], None], following: Callable[[asyncio.AbstractEventLoop], Job[Any] | None]
    ) -> None:
        self._pool = ThreadPoolExecutor(1, name, initializer=set_up)
        self._following = following
        self._last: Job[Any] | None = None

    def start(self, work: Callable[[], T], *, alone: bool = False) -> Job[T]:
        """Has it computed as soon as all that was started before has ended. alone: nothing follows by itself."""
        loop = asyncio.get_running_loop()
        job = Job(work, loop.create_future())
        self._last = None if alone else job

        def ended(run: Future[None]) -> None:
            error = None if run.cancelled() else run.exception()
            if error is not None and not loop.is_closed():
                loop.call_soon_threadsafe(job.failed, error)

        self._pool.submit(self._run, job, loop).add_done_callback(ended)
        return job

    def went_on(self, job: Job[Any] | None) -> None:
        """Says that `job`, which was the last one's `then`, is known to have begun; None: that nothing followed it."""
        self._last = job

    def stop(self) -> None:
        """Ends the thread after what it computes now."""
        self._last = None
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _run(self, job: Job[Any], loop: asyncio.AbstractEventLoop) -> None:
        job.began = time.monotonic()
        following: Job[Any] | None = job
        while following is not None:
            following = self._compute(following, loop)

    def _compute(self, job: Job[T], loop: asyncio.AbstractEventLoop) -> Job[Any] | None:
        """Returns what to go on with."""
        try:
            told = partial(job.succeeded, job.work())
        except BaseException as error:  # noqa: BLE001 - told where it is awaited
            told = partial(job.failed, error)
        following = job.then = self._next(loop) if job is self._last else None
        try:
            loop.call_soon_threadsafe(told)
        except RuntimeError:  # the loop is closed: nobody waits for anything
            return None
        return following

    def _next(self, loop: asyncio.AbstractEventLoop) -> Job[Any] | None:
        try:
            job = self._following(loop)
        except BaseException:
            logger.exception("cannot tell what to go on with")  # the loop will find out why, when it is to tell
            return None
        if job is not None:
            job.began = time.monotonic()
        return job
