"""Writes one direction of a stream: whatever waits when the last write ends leaves in the next message."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final

from worker.frames import Outgoing, Packer
from worker.nouns import Load

_CROWDED: Final = 8
_BUSY: Final = 0.3
_PATIENCE_S: Final = 0.003
"""A message costs its sender and its receiver several system calls, a frame in it next to nothing. So where at least
`_CROWDED` requests are under way and the loop's thread computes for more than `_BUSY` of the time, a message waits for
half of them to be in it, this many seconds at most. This is Nagle's idea (RFC 896), for frames; docs/hot-path.md has
what it gave.
"""

_SAMPLE_S: Final = 0.25


def quorum(under_way: int, busy: float) -> int:
    """Frames that a message waits for; 0: it leaves at once. `busy`: share of the time that the loop computes."""
    return under_way // 2 if under_way >= _CROWDED and busy >= _BUSY else 0


class StreamWriter:
    """Used by both ends of a stream. Its owner awaits `run`, which ends by being cancelled or by a failed write.

    `under_way` tells how many requests the stream has at the moment, those included that wait here.
    """

    def __init__(
        self,
        write: Callable[[bytes], Awaitable[None]],
        load: Callable[[], Load | None],
        under_way: Callable[[], int],
        written: Callable[[], None] = lambda: None,
    ) -> None:
        self._write = write
        self._load = load
        self._under_way = under_way
        self._written = written
        self._packer = Packer()
        self._wake = asyncio.Event()
        self._quorum = 0
        self._writing = False
        self._busy = 0.0
        self._sampled = (time.monotonic(), time.thread_time())

    @property
    def idle(self) -> bool:
        """Whether everything sent has been written."""
        return not self._packer and not self._writing

    @property
    def waiting(self) -> int:
        """Frames that no message has taken up yet."""
        return len(self._packer)

    def send(self, outgoing: Outgoing) -> None:
        self._packer.add(outgoing)
        if len(self._packer) >= self._quorum:
            self._wake.set()

    def discard(self, frame_id: int) -> None:
        self._packer.discard(frame_id)

    def tell_load(self) -> None:
        """Sends a message even if no frame waits, so that the other side learns this side's load."""
        self._wake.set()

    async def run(self) -> None:
        while True:
            await self._wake.wait()
            await self._gather()
            self._wake.clear()
            self._writing = True
            await self._write(self._packer.message(self._load()))
            self._writing = False
            self._written()
            if self._packer:
                self._wake.set()

    async def _gather(self) -> None:
        """Lets more frames join the next message: those of this turn of the loop; on a busy stream, some more."""
        await asyncio.sleep(0)
        self._quorum = quorum(self._under_way(), self._recent_load())
        if len(self._packer) >= self._quorum:
            self._quorum = 0
            return
        self._wake.clear()
        timer = asyncio.get_running_loop().call_later(_PATIENCE_S, self._wake.set)
        try:
            await self._wake.wait()
        finally:
            timer.cancel()
            self._quorum = 0

    def _recent_load(self) -> float:
        """Share of the recent past for which the loop's thread computed, 0 to 1."""
        then, computed_then = self._sampled
        now = time.monotonic()
        if now - then >= _SAMPLE_S:
            computed = time.thread_time()
            self._busy = (computed - computed_then) / (now - then)
            self._sampled = (now, computed)
        return self._busy


async def first_to_end(*coroutines: Coroutine[Any, Any, None]) -> None:
    """Runs all until the first ends, then cancels the others; raises what the first raised."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        await task
