"""Workers and the links to them, in simulated time: queue → batch → shard → next stage or answer.

Batches are formed by the code that forms them in a worker (`worker.batcher.form_batch`), replicas are chosen by the
code that chooses them in a link (`worker.routing.choose`, `worker.standing`), and the bounds are the real ones. Nothing
is refused or given up because it would be late: plans are for loads that there is room for.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from cluster.planning.clock import Action, Clock
from cluster.planning.deployment import StagePlan
from cluster.planning.host import Host, Thread
from cluster.planning.machines import Node
from cluster.planning.road import Road
from worker.batcher import Batching, form_batch
from worker.niceness import BEHIND, WORKER
from worker.nouns import Load as Said
from worker.routing import choose
from worker.standing import Standing

MAX_INFLIGHT: Final = 64
"""Requests from one gateway process to one replica: `limits.max_inflight_per_replica`."""
MAX_QUEUE_ROWS: Final = 1024
"""Rows that wait in one replica of the first stage: `limits.max_queue_rows`."""
_SMOOTHING: Final = 0.2


@dataclass(slots=True, eq=False)
class Item:
    """A request, or a batch on its way to the next stage. `answer` is called when it is answered, or refused."""

    rows: int
    nbytes: int
    sizes: tuple[int, ...]
    shape_key: object
    answer: Callable[[bool], None]
    deadline: float
    arrived: float = 0.0


@dataclass(slots=True, eq=False)
class _Line:
    """One caller's view of one replica."""

    replica: "Replica"
    standing: Standing
    sent: list[float] = field(default_factory=list)

    def wait(self, now: float) -> float:
        return self.standing.expected_wait(now, self.sent[0] if self.sent else now)


class Caller:
    """A link: to all replicas of one stage, from one gateway process or one replica of the stage before."""

    def __init__(
        self, clock: Clock, node: Node | None, replicas: Sequence["Replica"], limit: int, chance: random.Random
    ) -> None:
        self._clock = clock
        self._node = node
        self._lines = [_Line(replica, Standing(clock.now)) for replica in replicas]
        self._limit = limit
        self._chance = chance
        self._waiting: list[Item] = []
        self.room: Action = lambda: None

    @property
    def has_room(self) -> bool:
        return any(len(line.sent) < self._limit for line in self._lines)

    def call(self, item: Item, *, wait: bool) -> None:
        now = self._clock.now
        line = choose(
            [line for line in self._lines if len(line.sent) < self._limit], lambda line: line.wait(now), self._chance
        )
        if line is None:
            if wait:
                self._waiting.append(item)
            else:
                item.answer(False)
            return
        due = line.standing.sent(item.rows, now)
        line.sent.append(now)
        there = answered_to(item, partial(self._answered, line, item, now, due))
        self._clock.after(self._distance(line.replica, item.nbytes), lambda: line.replica.arrive(there))

    def _distance(self, replica: "Replica", nbytes: int) -> float:
        """Seconds on the wire."""
        if self._node is None or self._node.name == replica.node.name:
            return 0.0
        slower = min(self._node.network, replica.node.network)
        return max(self._node.latency_s, replica.node.latency_s) + nbytes / slower

    def _answered(self, line: _Line, item: Item, sent: float, due: float, good: bool) -> None:
        now = self._clock.now
        line.sent.remove(sent)
        line.standing.ended(item.rows)
        line.standing.told(line.replica.said(), now)
        if good:
            line.standing.answered(due, now)
        item.answer(good)
        if self._waiting:
            self.call(self._waiting.pop(0), wait=True)
        self.room()


def answered_to(item: Item, answer: Callable[[bool], None]) -> Item:
    """The same item, answered to someone else."""
    return Item(item.rows, item.nbytes, item.sizes, item.shape_key, answer, item.deadline)


class Replica:
    """One worker: an event loop, a compute thread, a queue."""

    def __init__(
        self,
        clock: Clock,
        node: Node,
        host: Host,
        stage: StagePlan,
        *,
        batching: Batching,
        seconds: Callable[[int, int], float],
        out_bytes: Callable[[int, int], int],
        road: Road,
        max_queue_rows: float = MAX_QUEUE_ROWS,
    ) -> None:
        self.node = node
        self._clock = clock
        self._max_queue_rows = max_queue_rows
        self._batching = batching
        self._seconds = seconds
        self._out_bytes = out_bytes
        self._road = road
        self._loop = Thread(clock, host, wake=road.worker_wake, niceness=WORKER + BEHIND)
        self.compute = Thread(clock, None if stage.gpus else host, stage.threads)
        self._queue: list[Item] = []
        self._rows = 0
        self._working = False
        self._seconds_per_row = 0.0
        self._timer = -1.0
        self.next: Caller | None = None

    def said(self) -> Said:
        return Said(self._rows, self._seconds_per_row)

    def arrive(self, item: Item) -> None:
        self._loop.do(self._road.worker_in + item.nbytes * self._road.worker_byte, lambda: self._put(item))

    def _put(self, item: Item) -> None:
        if self._queue and sum(one.rows for one in self._queue) + item.rows > self._max_queue_rows:
            item.answer(False)
            return
        item.arrived = self._clock.now
        self._queue.append(item)
        self._rows += item.rows
        self.turn()

    def turn(self) -> None:
        """Begins the next batch, where there is one to begin."""
        if self._is_ready():
            self._working = True
            # What arrives while the loop gets to it is taken along, as it is in a worker.
            self._loop.do(self._road.batch, self._begin)

    def _is_ready(self) -> bool:
        if self._working or not self._queue or (self.next is not None and not self.next.has_room):
            return False
        ripe = self._queue[0].arrived + self._batching.max_wait_s
        if self._clock.now < ripe and sum(item.rows for item in self._queue) < self._batching.max_rows:
            if self._timer < ripe:
                self._timer = ripe
                self._clock.at(ripe, self.turn)
            return False
        return True

    def _begin(self) -> None:
        self._drop_late()
        if not self._queue:
            self._working = False
            return
        batch = form_batch(self._queue, self._batching)
        taken = set(map(id, batch))
        self._queue = [item for item in self._queue if id(item) not in taken]
        rows = sum(item.rows for item in batch)
        sizes = tuple(map(max, zip(*(item.sizes for item in batch), strict=True)))
        length = sizes[0] if sizes else 1
        began = self._clock.now
        nbytes = sum(item.nbytes for item in batch)
        taken_s = self._road.turn + nbytes * self._road.turn_byte + self._seconds(rows, length)
        self.compute.do(taken_s, lambda: self._computed(batch, rows, sizes, began))

    def _drop_late(self) -> None:
        late = [item for item in self._queue if item.deadline <= self._clock.now]
        if late:
            self._queue = [item for item in self._queue if item.deadline > self._clock.now]
            self._rows -= sum(item.rows for item in late)
            for item in late:
                item.answer(False)

    def _computed(self, batch: list[Item], rows: int, sizes: tuple[int, ...], began: float) -> None:
        self._rows -= rows
        took = (self._clock.now - began) / max(1, rows)
        self._seconds_per_row += _SMOOTHING * (took - self._seconds_per_row) if self._seconds_per_row else took
        nbytes = self._out_bytes(rows, sizes[0] if sizes else 1)
        self._working = False
        if self._is_ready():  # the thread goes on by itself, before this batch is sent on its way
            self._working = True
            self._begin()
            self._loop.do(self._road.batch, _nothing)
        if self.next is None:
            answering = len(batch) * self._road.worker_out + nbytes * self._road.worker_byte
            self._loop.do(answering, partial(_answer, batch, True))
        else:
            latest = max(item.deadline for item in batch)
            onward = Item(rows, nbytes, sizes, sizes, partial(self._came_back, batch), latest)
            send = partial(self.next.call, onward, wait=True)
            self._loop.do(self._road.hop + nbytes * self._road.worker_byte, send)

    def _came_back(self, batch: list[Item], good: bool) -> None:
        self._loop.do(self._road.worker_in + len(batch) * self._road.worker_out, partial(_answer, batch, good))


def _nothing() -> None:
    """What the loop learns of a batch that has begun."""


def _answer(batch: Sequence[Item], good: bool) -> None:
    for item in batch:
        item.answer(good)
