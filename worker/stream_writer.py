"""Writes one direction of a stream: whatever waits when the last write ends leaves in the next message."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from worker.frames import Outgoing, Packer
from worker.nouns import Load


class StreamWriter:
    """Used by both ends of a stream. Its owner awaits `run`, which ends by being cancelled or by a failed write."""

    def __init__(
        self,
        write: Callable[[bytes], Awaitable[None]],
        load: Callable[[], Load | None],
        written: Callable[[], None] = lambda: None,
    ) -> None:
        self._write = write
        self._load = load
        self._written = written
        self._packer = Packer()
        self._wake = asyncio.Event()
        self._writing = False

    @property
    def idle(self) -> bool:
        """Whether everything sent has been written."""
        return not self._packer and not self._writing

    def send(self, outgoing: Outgoing) -> None:
        self._packer.add(outgoing)
        self._wake.set()

    def discard(self, frame_id: int) -> None:
        self._packer.discard(frame_id)

    def tell_load(self) -> None:
        """Sends a message even if no frame waits, so that the other side learns this side's load."""
        self._wake.set()

    async def run(self) -> None:
        while True:
            await self._wake.wait()
            # Every handler that is ready in this turn of the loop adds its frame before the message is made.
            await asyncio.sleep(0)
            self._wake.clear()
            self._writing = True
            await self._write(self._packer.message(self._load()))
            self._writing = False
            self._written()
            if self._packer:
                self._wake.set()


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
