"""Simulated machines: cores with their run queues, and threads that compute on them by turns, as Linux lets them.

On each core the thread that has used it least runs, for a slice; one that wakes up and has used it less than the
running one runs at once (Linux's CFS and EEVDF, without their finer points). A thread wakes up on the core that it had,
on a free one where that is taken, and on the emptiest where its own has more threads: by two, or every other time by
one, since in Linux it depends on who wakes it up. A core with nothing left to do takes a waiting thread from the
fullest one.

That batches take unequal time, that answers come late and that cores rest meanwhile comes from these turns. With cores
that are shared evenly at every moment, pipelines on full machines were simulated a sixth too fast.
"""

import heapq
import itertools
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from cluster.planning.clock import Action, Clock
from worker.niceness import WORKER

_LEAST_S: Final = 1e-9
_FORGETS_S: Final = 0.004
"""A thread that rested for so long finds nothing of its own in the caches; roads were measured with rests like that."""
_A_STEP: Final = 1.25
"""So many times as much of a core a thread gets for every step of niceness that it has less, in Linux."""


@dataclass(frozen=True, slots=True)
class Scheduler:
    """Seconds.

    slice_s: for so long a thread runs while others wait (Linux: 0.7 ms times 1 + log2 of the cores, at most 2.8 ms,
      unless the distribution makes it longer: 4.2 ms on the machine that plans were compared with).
    switch_s: what a turn costs that begins after another thread's. refill_s: what it takes, besides, to fill the caches
      anew where a long one was between: processes that took turns of 4 ms were found to compute 4 to 7 % slower. Tasks
      of less than half a slice neither take the caches nor lose them.
    lag_s: how much less than the others a thread may be taken to have used when it wakes up; without any, one that
      sleeps between short tasks would wait behind long ones.
    """

    slice_s: float = 0.003
    switch_s: float = 0.0001
    refill_s: float = 0.0002
    lag_s: float = 0.0003

    def __post_init__(self) -> None:
        if self.slice_s <= self.switch_s + self.refill_s:
            raise ValueError("slice_s: expected more than a switch and a refill take, else nothing is ever done")


@dataclass(slots=True, eq=False)
class Seat:
    """Of a thread: the core that it has or had last, and how much it has used it, in seconds over its weight."""

    core: int = -1
    used: float = 0.0


@dataclass(slots=True, eq=False)
class _Task:
    left: float
    done: Action
    seat: Seat
    weight: float


@dataclass(slots=True, eq=False)
class _Core:
    """floor: what its least user had used, ever rising; who wakes up is taken to have used about as much.

    last: who ran last; its turn lasts until slice_ends. cached: whose things are in its caches.
    since: as of when `running` and `floor` are told.
    """

    running: _Task | None = None
    waiting: list[_Task] = field(default_factory=list)
    last: Seat | None = None
    cached: Seat | None = None
    slice_ends: float = 0.0
    floor: float = 0.0
    since: float = 0.0
    newest: int = -1

    @property
    def tasks(self) -> int:
        return len(self.waiting) + (self.running is not None)

    def advance(self, now: float) -> None:
        passed, self.since = now - self.since, now
        if self.running is not None:
            self.running.left -= passed
            self.running.seat.used += passed / self.running.weight
            least = min((task.seat.used for task in self.waiting), default=math.inf)
            self.floor = max(self.floor, min(least, self.running.seat.used))

    def start(self, task: _Task, now: float, scheduler: Scheduler) -> None:
        self.running = task
        if self.last is not task.seat:
            self.slice_ends = now + scheduler.slice_s
            if self.last is not None:
                task.left += scheduler.switch_s
            self.last = task.seat
        if task.left >= scheduler.slice_s / 2:
            if self.cached not in (None, task.seat):
                task.left += scheduler.refill_s
            self.cached = task.seat

    def next_event(self, now: float) -> float:
        """When the running task is done, or its slice is over while others wait."""
        if self.running is None:
            return math.inf
        done = now + max(0.0, self.running.left)
        return min(done, max(now, self.slice_ends)) if self.waiting else done


class Host:
    """A machine's cores.

    cores: what is left of them for what is simulated: 1.5 are two cores of three quarters of the speed.
    crowded: how much slower each core is while all of them are busy.
    """

    def __init__(
        self,
        clock: Clock,
        cores: float,
        *,
        crowded: float = 1.0,
        speed: float = 1.0,
        scheduler: Scheduler | None = None,
    ) -> None:
        self._clock = clock
        self._cores = [_Core() for _ in range(max(1, math.ceil(cores - 1e-9)))]
        self._crowded = crowded
        self._speed = speed * cores / len(self._cores)
        self._scheduler = scheduler or Scheduler()
        self._idle = set(range(len(self._cores)))
        self._moves_easily = False
        self._order = itertools.count()
        # Time as the cores see it: it passes slower where they disturb each other.
        self._now = 0.0
        self._rate = self._speed
        self._since = 0.0
        self._events: list[tuple[float, int, int]] = []
        self._expected = -1

    def compute(
        self, seconds: float, width: int, done: Action, *, niceness: int = WORKER, seats: Sequence[Seat] = ()
    ) -> None:
        """Calls `done` after `seconds` of work on each of `width` cores. seats: of these threads, if they are known."""
        weight = _A_STEP ** (WORKER - niceness)
        left = width
        seats = seats or [Seat() for _ in range(width)]

        def part_done() -> None:
            nonlocal left
            left -= 1
            if left == 0:
                done()

        self._advance()
        for own in seats:
            self._put(_Task(max(seconds, _LEAST_S), part_done if width > 1 else done, own, weight))
        self._expect()

    def _put(self, task: _Task) -> None:
        place = self._place(task.seat)
        core = self._cores[place]
        core.advance(self._now)
        self._sit(task.seat, place)
        task.seat.used = max(task.seat.used, core.floor - self._scheduler.lag_s)
        if core.running is None and (place in self._idle or core.last is task.seat):
            self._idle.discard(place)
            core.start(task, self._now, self._scheduler)
        elif core.running is None:  # one has just ended there: whose turn it is then counts this one too
            core.waiting.append(task)
        elif task.seat.used < core.running.seat.used:
            core.waiting.append(core.running)
            core.start(task, self._now, self._scheduler)
        else:
            core.waiting.append(task)
        self._plan(place)

    def _place(self, seat: Seat) -> int:
        own = self._cores[seat.core] if seat.core >= 0 else None
        if own is not None and (seat.core in self._idle or (own.running is None and own.last is seat)):
            return seat.core
        if self._idle:
            return next(iter(self._idle))
        emptiest = min(range(len(self._cores)), key=lambda place: self._cores[place].tasks)
        self._moves_easily = not self._moves_easily
        if own is None or own.tasks >= self._cores[emptiest].tasks + (1 if self._moves_easily else 2):
            return emptiest
        return seat.core

    def _sit(self, seat: Seat, place: int) -> None:
        """What it has used counts from the floor of its core."""
        if seat.core != place:
            before = 0.0
            if seat.core >= 0:
                self._cores[seat.core].advance(self._now)
                before = self._cores[seat.core].floor
            seat.used += self._cores[place].floor - before
            seat.core = place

    def _advance(self) -> None:
        self._now += (self._clock.now - self._since) * self._rate
        self._since = self._clock.now

    def _plan(self, place: int) -> None:
        core = self._cores[place]
        core.newest = next(self._order)
        when = core.next_event(self._now)
        if when < math.inf:
            heapq.heappush(self._events, (when, core.newest, place))

    def _expect(self) -> None:
        """Waits for what happens next on any core."""
        busy, slower = len(self._cores) - len(self._idle), 1.0
        if len(self._cores) > 1 and busy > 1:
            slower += (self._crowded - 1) * (busy - 1) / (len(self._cores) - 1)
        self._rate = self._speed / slower
        while self._events and self._events[0][1] != self._cores[self._events[0][2]].newest:
            heapq.heappop(self._events)
        self._expected = next(self._order)
        if self._events:
            token = self._expected
            when = self._clock.now + max(0.0, self._events[0][0] - self._now) / self._rate
            self._clock.at(when, lambda: self._event(token))

    def _event(self, token: int) -> None:
        if token != self._expected:
            return
        self._advance()
        when, _, place = heapq.heappop(self._events)
        self._now = max(self._now, when)
        core = self._cores[place]
        core.advance(self._now)
        task = core.running
        if task is None:
            raise RuntimeError("nothing runs where something was to happen")
        core.running = None
        if task.left > _LEAST_S / 2:
            core.waiting.append(task)
        else:
            task.done()  # a thread that has more to do goes on with it here
        if core.running is None:
            self._next(place)
        self._plan(place)
        self._expect()

    def _next(self, place: int) -> None:
        """Whose turn it is on a core that nobody runs on."""
        core = self._cores[place]
        if not core.waiting:
            fullest = max(range(len(self._cores)), key=lambda other: len(self._cores[other].waiting))
            if not self._cores[fullest].waiting:
                self._idle.add(place)
                return
            self._cores[fullest].advance(self._now)
            taken = self._cores[fullest].waiting.pop(0)
            self._plan(fullest)
            self._sit(taken.seat, place)
            core.waiting.append(taken)
        least = min(core.waiting, key=lambda task: task.seat.used)
        core.waiting.remove(least)
        core.slice_ends = self._now + self._scheduler.slice_s
        core.start(least, self._now, self._scheduler)


class Thread:
    """Does one thing after the other on its host; `host` None: on a core of its own that nobody else uses.

    wake: seconds that it takes to begin again after it had nothing to do for `_FORGETS_S`, less after a shorter time.
    niceness: as in Linux; of what computes, where nothing is said.
    """

    __slots__ = ("_busy", "_clock", "_host", "_niceness", "_rests_since", "_seats", "_tasks", "_wake", "busy_s")

    def __init__(
        self, clock: Clock, host: Host | None, width: int = 1, wake: float = 0.0, *, niceness: int = WORKER
    ) -> None:
        self._clock = clock
        self._host = host
        self._wake = wake
        self._niceness = niceness
        self._seats = [Seat() for _ in range(width)]
        self._tasks: deque[tuple[float, Action]] = deque()
        self._busy = False
        self._rests_since = -math.inf
        self.busy_s = 0.0

    def do(self, seconds: float, done: Action, *, at_once: bool = False) -> None:
        """at_once: before all that waits, since it goes on with what was done just now."""
        if self._busy:
            (self._tasks.appendleft if at_once else self._tasks.append)((seconds, done))
            return
        wake = self._wake * min(1.0, (self._clock.now - self._rests_since) / _FORGETS_S)
        if seconds + wake <= 0:
            done()
        else:
            self._tasks.append((seconds + wake, done))
            self._next()

    def _next(self) -> None:
        seconds, done = self._tasks.popleft()
        self._busy = True
        began = self._clock.now

        def finished() -> None:
            self.busy_s += self._clock.now - began
            done()  # what it brings is done without waking up again
            self._busy = False
            self._rests_since = self._clock.now
            if self._tasks:
                self._next()

        if self._host is None:
            self._clock.after(max(seconds, _LEAST_S), finished)
        else:
            self._host.compute(seconds, len(self._seats), finished, niceness=self._niceness, seats=self._seats)
