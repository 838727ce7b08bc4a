"""Who waits for a place, and whose turn it is: the lowest priority number first, the oldest first within one."""

import asyncio
import heapq
import itertools
import time


class Turns:
    """Belongs to the event loop it is used on."""

    def __init__(self) -> None:
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._numbers = itertools.count()
        self._living = 0
        self._woken = 0

    def __bool__(self) -> bool:
        """Whether anyone waits, or was woken and has not taken its place yet: who comes now, comes after them."""
        return len(self) + self._woken > 0

    def __len__(self) -> int:
        """Those who wait and were not woken."""
        return self._living

    def number(self) -> int:
        """One for each who waits; keeps its place over several waits."""
        return next(self._numbers)

    async def wait(self, priority: int, number: int, until: float) -> None:
        """Returns when it may be this one's turn, or at `until` (monotonic). It must take its place at once then."""
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (priority, number, woken))
        self._living += 1
        try:
            async with asyncio.timeout(max(0.0, until - time.monotonic())):
                await woken
        except TimeoutError:
            return
        finally:
            if woken.done() and not woken.cancelled():
                self._woken -= 1
            else:
                woken.cancel()
                self._living -= 1
                if len(self._waiting) > 2 * self._living:
                    self._drop_gone()

    def wake(self, places: int) -> None:
        """There are so many places; those who were woken and have not come yet get theirs first."""
        places -= self._woken
        while places > 0 and self._waiting:
            _, _, woken = heapq.heappop(self._waiting)
            if woken.done():
                continue  # it was cancelled: it counts itself out
            woken.set_result(None)
            self._living -= 1
            self._woken += 1
            places -= 1

    def wake_all(self) -> None:
        self.wake(len(self._waiting) + self._woken)

    def _drop_gone(self) -> None:
        """Only when half of the queue is theirs: so leaving costs little."""
        self._waiting = [one for one in self._waiting if not one[2].done()]
        heapq.heapify(self._waiting)
