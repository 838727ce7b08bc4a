"""Simulated time."""

import heapq
import itertools
from collections.abc import Callable

Action = Callable[[], None]


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
