"""A backend that holds every request until it is told to let them go."""

import asyncio

from tests.gateway.backend import echo
from worker.nouns import Answer, Work


class Gate:
    """`serve` answers between `open` and `close`. `entered` counts what came in, `cancelled` counts what was given up.

    `remaining`: seconds that each request had left when it came in.
    """

    def __init__(self) -> None:
        self.entered = 0
        self.cancelled = 0
        self.seen: list[Work] = []
        self.remaining: list[float] = []
        self._opened = asyncio.Event()
        self._changed = asyncio.Event()

    def open(self) -> None:
        self._opened.set()

    def close(self) -> None:
        self._opened.clear()

    async def serve(self, work: Work) -> Answer:
        self.entered += 1
        self.seen.append(work)
        self.remaining.append(work.remaining)
        self._wake()
        try:
            await self._opened.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self._wake()
        return await echo(work)

    async def until(self, *, entered: int = 0, cancelled: int = 0) -> None:
        """Returns once that many came in and were given up; fails after a minute."""
        async with asyncio.timeout(60):
            while self.entered < entered or self.cancelled < cancelled:
                await self._changed.wait()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
