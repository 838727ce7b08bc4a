"""Simulated time, machines and threads: cores that are shared evenly by whoever computes.

Threads that want more cores than there are get equal shares, as from a fair scheduler; and while several cores are busy
each is slower by what the profile measured (`crowded`).
"""

import heapq
import itertools
import math
from collections import deque
from collections.abc import Callable
from typing import Final

Action = Callable[[], None]

_LEAST_S: Final = 1e-9


class Clock:
    """Runs actions in the order of their times, seconds from 0; of equal times, first come."""

    def __init__(self) -> None:
        self.now = 0.0
        self._order = itertools.count()
        self._actions: list[tuple[float, int, Action]] = []

    def at(self, when: float, action: Action) -> None:
        heapq.heappush(self._actions, (when, next(self._order), action))

    def after(self, seconds: float, action: Action) -> None:
        if seconds > 0:
            self.at(self.now + seconds, action)
        else:
            action()

    def run(self, until: float) -> None:
        """Runs what is due by `until`, or all there is where that is less."""
        while self._actions and self._actions[0][0] <= until:
            self.now, _, action = heapq.heappop(self._actions)
            action()


class _Rank:
    """Tasks that have their cores before, or after, the others; among themselves they share evenly."""

    __slots__ = ("rate", "running", "wanted", "worked")

    def __init__(self) -> None:
        self.running: list[tuple[float, int, float, Action]] = []
        self.wanted = 0.0
        self.worked = 0.0
        self.rate = 1.0

    @property
    def left_s(self) -> float:
        """Seconds until the first of them is done."""
        if not self.running or self.rate <= 0:
            return math.inf
        return max(0.0, self.running[0][0] - self.worked) / self.rate


class Host:
    """A machine's cores. Urgent tasks have theirs first: Ray's workers run with a niceness of 15, gateways do not."""

    def __init__(self, clock: Clock, cores: float, *, crowded: float = 1.0, speed: float = 1.0) -> None:
        self._clock = clock
        self._cores = cores
        self._crowded = crowded
        self._speed = speed
        self._ranks = (_Rank(), _Rank())
        self._order = itertools.count()
        self._since = 0.0
        self._newest = 0
        self.busy_s = 0.0

    def compute(self, seconds: float, width: float, done: Action, *, urgent: bool = False) -> None:
        """Calls `done` after `seconds` of work on `width` cores."""
        self._advance()
        rank = self._ranks[0 if urgent else 1]
        heapq.heappush(rank.running, (rank.worked + max(seconds, _LEAST_S), next(self._order), width, done))
        rank.wanted += width
        self._plan_next()

    def _busy(self) -> float:
        return min(sum(rank.wanted for rank in self._ranks), self._cores)

    def _advance(self) -> None:
        passed = self._clock.now - self._since
        for rank in self._ranks:
            rank.worked += passed * rank.rate
        self.busy_s += passed * self._busy()
        self._since = self._clock.now

    def _plan_next(self) -> None:
        busy = self._busy()
        slower = 1.0
        if self._cores > 1 and busy > 1:
            slower += (self._crowded - 1) * (busy - 1) / (self._cores - 1)
        free = self._cores
        for rank in self._ranks:
            rank.rate = self._speed * min(1.0, free / rank.wanted) / slower if rank.wanted else 0.0
            free = max(0.0, free - rank.wanted)
        first = min(self._ranks, key=lambda rank: rank.left_s)
        if not first.running:
            return
        self._newest += 1
        token = self._newest
        self._clock.at(self._clock.now + first.left_s, lambda: self._finish(token, first))

    def _finish(self, token: int, rank: _Rank) -> None:
        if token != self._newest:
            return
        self._advance()
        _, _, width, done = heapq.heappop(rank.running)
        rank.wanted = max(0.0, rank.wanted - width) if rank.running else 0.0
        self._newest += 1
        self._plan_next()
        done()


class Thread:
    """Does one thing after the other on its host; `host` None: on a core of its own that nobody else uses.

    wake: seconds that it takes to begin again after it had nothing to do. urgent: as in `Host.compute`.
    """

    __slots__ = ("_busy", "_clock", "_host", "_tasks", "_urgent", "_wake", "_width", "busy_s")

    def __init__(
        self, clock: Clock, host: Host | None, width: float = 1.0, wake: float = 0.0, *, urgent: bool = False
    ) -> None:
        self._clock = clock
        self._host = host
        self._width = width
        self._wake = wake
        self._urgent = urgent
        self._tasks: deque[tuple[float, Action]] = deque()
        self._busy = False
        self.busy_s = 0.0

    def do(self, seconds: float, done: Action) -> None:
        if self._busy:
            self._tasks.append((seconds, done))
        elif seconds + self._wake <= 0:
            done()
        else:
            self._tasks.append((seconds + self._wake, done))
            self._next()

    def _next(self) -> None:
        seconds, done = self._tasks.popleft()
        self._busy = True
        began = self._clock.now

        def finished() -> None:
            self.busy_s += self._clock.now - began
            done()  # what it brings is done without waking up again
            self._busy = False
            if self._tasks:
                self._next()

        if self._host is None:
            self._clock.after(max(seconds, _LEAST_S), finished)
        else:
            self._host.compute(seconds, self._width, finished, urgent=self._urgent)
