"""How fast the machine was while something was measured.

On a shared one, the same takes half as long again for some minutes.
"""

import statistics
from collections.abc import Callable
from typing import Final, TypeVar

SIZE: Final = (2, 64)
"""Rows, and the length of every other axis, of the run that tells the pace."""

T = TypeVar("T")


class Pace:
    """The same run between measurements: `run` gives its seconds."""

    def __init__(self, run: Callable[[], float] = lambda: 1.0) -> None:
        self._run = run
        self._taken: list[float] = []

    def take(self) -> float:
        self._taken.append(self._run())
        return self._taken[-1]

    def around(self, measure: Callable[[], T]) -> tuple[T, float]:
        """What `measure` returns, and the seconds of the run meanwhile: the mean of just before and just after."""
        before = self._taken[-1] if self._taken else self.take()
        found = measure()
        return found, (before + self.take()) / 2

    @property
    def typical(self) -> float:
        """Median seconds of the run."""
        return statistics.median(self._taken)
