"""Holds the requests that wait for a shard and decides which are computed together.

`form_batch` is the decision; `Batcher` is the queue around it. Neither knows what the tensors mean: a request is so
many rows of so many cells, where a row's cells are the product of its dynamic axes (a sentence of 12 tokens: 12).
"""

import asyncio
import math
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol, TypeVar

from worker.errors import DeadlineExceeded, Overloaded
from worker.nouns import Answer, Work

_UNKNOWN_PADDING: Final = 0.1
"""Share of a batch that may be padding where nothing says what padding costs."""
WARM_UP_LENGTHS: Final = (16, 64)
"""Of the axes of two batches of one row that tell `spare_cells`."""
_BATCH_S: Final = 5e-4
"""What a batch costs beside the shard, seconds: a hop to the compute thread and back, and being handed on."""


@dataclass(frozen=True, slots=True)
class Batching:
    """How requests are put together. Requests of different lengths share a batch within `max_padding`.

    max_rows: rows of one batch.
    max_wait_s: longest wait of the first stage for a batch to fill, seconds; 0: takes what is there.
    max_bytes: bytes of a batch's inputs, padding included.
    max_padding: share of a batch that may be padding, 0 to 1; None: as much as costs no more than a batch more would,
      which is `spare_cells`.
    spare_cells: see `spare_cells`; None: not known, a tenth of a batch may be padding.
    """

    max_rows: int = 16
    max_wait_s: float = 0.0
    max_bytes: int = 64 << 20
    max_padding: float | None = None
    spare_cells: float | None = None


def spare_cells(short: tuple[int, float], long: tuple[int, float]) -> float | None:
    """So many cells take as long as a batch takes beside its cells, by two batches of one row: their cells and seconds.

    None where the long one takes hardly longer, as on a device that neither fills: what a cell costs is not known then.
    """
    (few, least_s), (many, most_s) = short, long
    if many <= few or most_s < 1.2 * least_s:
        return None
    cell_s = (most_s - least_s) / (many - few)
    return (max(0.0, least_s - few * cell_s) + _BATCH_S) / cell_s


class Queued(Protocol):
    """What `form_batch` looks at: see `Item`."""

    @property
    def rows(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def shape_key(self) -> object: ...
    @property
    def sizes(self) -> tuple[int, ...]: ...


Q = TypeVar("Q", bound=Queued)


@dataclass(slots=True, eq=False)
class Item:
    """One request in the queue.

    shape_key: requests with different keys never share a batch.
    sizes: length of each axis that may be padded, in a fixed order.
    future: who waits for it; done before the answer when it was cancelled.
    """

    work: Work
    rows: int
    nbytes: int
    shape_key: object
    sizes: tuple[int, ...]
    future: asyncio.Future[Answer]
    arrived: float = field(default_factory=time.monotonic)


def form_batch(queue: Sequence[Q], batching: Batching) -> list[Q]:
    """The items to compute next: always the first of `queue`, and those that fit to it best.

    The candidates nearest in length to the first join until the rows, the bytes or the padding would go over. An item
    that is over a bound by itself is computed alone.
    """
    head = queue[0]
    chosen = [head]
    rows, largest, filled = head.rows, head.sizes, head.rows * cells_of(head.sizes)
    bytes_per_cell = head.nbytes / max(1, filled)
    candidates = [item for item in queue[1:] if item.shape_key == head.shape_key]
    candidates.sort(key=lambda item: _distance(item.sizes, head.sizes))
    for item in candidates:
        new_rows = rows + item.rows
        if new_rows > batching.max_rows:
            continue
        new_largest = tuple(map(max, largest, item.sizes))
        new_filled = filled + item.rows * cells_of(item.sizes)
        padded = new_rows * cells_of(new_largest)
        if padded - new_filled > _most_padding(batching, padded) or padded * bytes_per_cell > batching.max_bytes:
            continue
        chosen.append(item)
        rows, largest, filled = new_rows, new_largest, new_filled
        if rows == batching.max_rows:
            break
    return chosen


def _most_padding(batching: Batching, padded: int) -> float:
    """Cells of padding that a batch of `padded` cells may have."""
    if batching.max_padding is None and batching.spare_cells is not None:
        return batching.spare_cells
    return padded * (_UNKNOWN_PADDING if batching.max_padding is None else batching.max_padding)


def cells_of(sizes: Iterable[int]) -> int:
    """Of one row whose axes are so long."""
    cells = 1
    for size in sizes:
        cells *= size
    return cells


def _distance(sizes: tuple[int, ...], other: tuple[int, ...]) -> int:
    return sum(abs(mine - theirs) for mine, theirs in zip(sizes, other, strict=True))


class Batcher:
    """A bounded queue, highest priority first and oldest first within one, that gives batches."""

    def __init__(
        self, batching: Batching, max_queue_rows: int | None, least_s: Callable[[int], float] = lambda _: 0.0
    ) -> None:
        """max_queue_rows: None where callers bound what they send.

        least_s: seconds until the first of so many rows is answered, where a batch of them is begun now.
        """
        self.batching = batching
        self._max_queue_rows = math.inf if max_queue_rows is None else max_queue_rows
        self._least_s = least_s
        self._queue: list[Item] = []
        self._arrived = asyncio.Event()
        self.rows = 0
        self.refused = 0
        self.dropped_expired = 0
        self.dropped_cancelled = 0

    def put(self, item: Item, *, admitted: bool = False) -> None:
        """Raises `Overloaded` where the queue is full; an empty one takes an item of any size, and a full one takes
        what was `admitted` before.
        """
        if not admitted and self.rows + item.rows > self._max_queue_rows and self._queue:
            self.drop_dead()
            if self.rows + item.rows > self._max_queue_rows and self._queue:
                self.refused += 1
                raise Overloaded(f"the replica's queue holds {self.rows} of {self._max_queue_rows} rows; try later")
        place = len(self._queue)
        while place and self._queue[place - 1].work.priority > item.work.priority:
            place -= 1
        self._queue.insert(place, item)
        self.rows += item.rows
        self._arrived.set()

    async def next(self) -> list[Item]:
        """Waits for work and returns the items to compute together, never an empty list."""
        while True:
            self.drop_dead()
            if not self._queue:
                self._arrived.clear()
                await self._arrived.wait()
                continue
            missing = self._missing(self._queue)
            if missing <= 0:
                return self._take()
            self._arrived.clear()
            try:
                async with asyncio.timeout(missing):
                    await self._arrived.wait()
            except TimeoutError:
                continue

    def ready(self) -> list[Item]:
        """What `next` would return without waiting; empty where it would wait."""
        self.drop_dead()
        return self._take() if self.ripe else []

    def ahead(self, late_s: float) -> list[Item]:
        """What `ready` would return now, left in the queue; may be asked on another thread.

        late_s: seconds until what begins now is answered. Empty where `ready` would wait or give something up.
        """
        queue = list(self._queue)
        if not queue or self._missing(queue) > 0:
            return []
        items = form_batch(queue, self.batching)
        until = time.monotonic() + (late_s if self.rows > self.batching.max_rows else 0.0)
        return [] if any(item.future.done() or item.work.deadline <= until for item in items) else items

    def remove(self, items: Collection[Item]) -> None:
        """What is computed now."""
        taken = set(map(id, items))
        self._keep([item for item in self._queue if id(item) not in taken])

    def _keep(self, items: list[Item]) -> None:
        self._queue = items
        self.rows = sum(item.rows for item in items)

    @property
    def ripe(self) -> bool:
        """Whether a batch waits for nothing but to be taken."""
        return bool(self._queue) and self._missing(self._queue) <= 0

    def _missing(self, queue: Sequence[Item]) -> float:
        """Seconds for which the batch still waits for more."""
        if self.batching.max_wait_s <= 0 or self.rows >= self.batching.max_rows:
            return 0.0
        return min(item.arrived for item in queue) + self.batching.max_wait_s - time.monotonic()

    def _take(self) -> list[Item]:
        batch = form_batch(self._queue, self.batching)
        if self._drop_hopeless(sum(item.rows for item in batch)):
            batch = form_batch(self._queue, self.batching)
        self.remove(batch)
        return batch

    def _drop_hopeless(self, rows: int) -> bool:
        """Gives up what can no longer be answered in time, where more waits than one batch takes, and some of it can:
        whatever was computed for the late would be in vain, and would make others late. Where all would be late, the
        guess may be what is wrong. Whether it gave up any; `rows`: of the batch that would be taken.
        """
        if self.rows <= self.batching.max_rows:
            return False
        until = time.monotonic() + self._least_s(rows)
        living = [item for item in self._queue if item.work.deadline > until]
        if not 0 < len(living) < len(self._queue):
            return False
        for item in self._queue:
            if item.work.deadline <= until:
                self.dropped_expired += 1
                item.future.set_exception(DeadlineExceeded("the answer would come after the deadline"))
        self._keep(living)
        return True

    def drop_dead(self) -> None:
        """Removes what nobody waits for and what came too late, before anything is computed for it."""
        now = time.monotonic()
        living: list[Item] = []
        for item in self._queue:
            if item.future.done():
                self.dropped_cancelled += 1
            elif item.work.deadline <= now:
                self.dropped_expired += 1
                item.future.set_exception(DeadlineExceeded("the deadline passed in the replica's queue"))
            else:
                living.append(item)
        if len(living) != len(self._queue):
            self._keep(living)
