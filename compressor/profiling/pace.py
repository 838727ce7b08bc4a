"""How fast the machine was while something was measured: a shared one is half as fast again for some minutes."""

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal, TypeVar

from compressor.profiling.stage_profile import Crowd, Request
from worker.cores import cores

SIZE: Final = (8, 64)
"""Rows, and the length of every other axis, of the run that tells the pace."""
MOST_PROCESSES: Final = 16
"""As many run at once to see how much cores disturb each other."""

T = TypeVar("T")


class Pace:
    """The same run between measurements: `turn` gives its seconds alone and on all cores, as `Crowd.turn` does."""

    def __init__(self, turn: Callable[[], tuple[float, float]] = lambda: (1.0, 1.0)) -> None:
        self._turn = turn
        self._turns: list[tuple[float, float]] = []

    def take(self) -> float:
        """Seconds of the run alone."""
        self._turns.append(self._turn())
        return self._turns[-1][0]

    def around(self, measure: Callable[[], T]) -> tuple[T, float]:
        """What `measure` returns, and the seconds of the run meanwhile: the mean of just before and just after."""
        before = self._turns[-1][0] if self._turns else self.take()
        found = measure()
        return found, (before + self.take()) / 2

    @property
    def typical(self) -> float:
        """Median seconds of the run alone."""
        return statistics.median(alone for alone, _ in self._turns)

    @property
    def crowded(self) -> float:
        """Seconds of a run while every core computes one, over its seconds alone."""
        return max(1.0, statistics.median(together / alone for alone, together in self._turns))


def pacemakers(version: Path, *, rows: int, length: int, runtime: Literal["fastest", "eager"], key: Path) -> Crowd:
    """The whole model, once for each core."""
    request = Request(str(version), 0, 1, "cpu", 1, runtime, key=str(key), sizes=((rows, length),))
    return Crowd(request, min(cores(), MOST_PROCESSES))
