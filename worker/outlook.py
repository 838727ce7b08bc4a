"""When a row that comes now would be answered: what a worker tells its callers, so that they can refuse what would be
late before anything is done for it. Pure; times are in seconds, `now` on any one monotonic clock.
"""

import math
from dataclasses import dataclass
from typing import Final

from worker.nouns import Forecast

_FORGETS: Final = 0.95
"""Weight that a batch keeps with each one after it."""
_SMOOTHING: Final = 0.2


@dataclass(frozen=True, slots=True)
class Held:
    """Rows in the queue, and of the batch that has been computed for `computing_s` (0 rows: none is)."""

    waiting_rows: int
    computing_rows: int
    computing_s: float


class ServiceTime:
    """Seconds that a batch takes by its rows: a straight line through the recent ones (weighted least squares)."""

    def __init__(self) -> None:
        self._weight = self._rows = self._seconds = self._rows_rows = self._rows_seconds = 0.0
        self._slope = 0.0

    def after(self, rows: int, seconds: float) -> None:
        """A batch of `rows` took `seconds`."""
        self._weight = _FORGETS * self._weight + 1
        self._rows = _FORGETS * self._rows + rows
        self._seconds = _FORGETS * self._seconds + seconds
        self._rows_rows = _FORGETS * self._rows_rows + rows * rows
        self._rows_seconds = _FORGETS * self._rows_seconds + rows * seconds
        spread = self._weight * self._rows_rows - self._rows**2
        if spread > 1e-3 * self._rows**2:  # else they are all as large, and tell nothing of other sizes
            self._slope = (self._weight * self._rows_seconds - self._rows * self._seconds) / spread

    def of(self, rows: int) -> float:
        """Never negative, and never less for more rows; 0 before the first batch."""
        if not self._weight:
            return 0.0
        mean_rows, mean = self._rows / self._weight, self._seconds / self._weight
        slope = min(max(self._slope, 0.0), mean / mean_rows)
        return mean + slope * (rows - mean_rows)


class Outlook:
    """Of one worker. `max_rows`: of one batch.

    Beside the service time it keeps how long a worker that has work computes nothing: it waits for the next stage to
    have room, or for its turn on a core. That figure loses half its weight each second without news: a stage that was
    stuck once must not have everything refused for ever.
    """

    def __init__(self, max_rows: int) -> None:
        self._max_rows = max_rows
        self._service = ServiceTime()
        self._idle = _Fading()
        self._late = _Spread()

    def computed(self, rows: int, seconds: float) -> None:
        """A batch took `seconds` here."""
        self._service.after(max(1, rows), seconds)

    def was_idle(self, seconds: float, now: float) -> None:
        """Between two batches nothing was computed for so long, although the second one waited; 0: it did not wait."""
        self._idle.after(seconds, now)

    def answered(self, late_s: float, now: float) -> None:
        """A batch was answered so much later than `least_s` of it said when it began; negative: sooner."""
        self._late.after(late_s, now)

    def tell(self, held: Held, later: Forecast, later_least_s: float, now: float) -> Forecast:
        """For one more row, by what is `held` here and what the `later` stages tell of the batch that it will be in.

        later_least_s: what they need for that row alone, with nothing before it.
        """
        pace = max((self._service.of(self._max_rows) + self._idle.at(now)) / self._max_rows, later.pace_s)
        rest = max(0.0, self._service.of(held.computing_rows) - held.computing_s) if held.computing_rows else 0.0
        own = self._service.of(min(self._max_rows, held.waiting_rows + 1))
        least = self._service.of(1) + later_least_s
        until_done = held.waiting_rows * pace + own
        # What is computed now gets to the later stages first, which know nothing of it yet.
        behind = max(0.0, held.computing_rows * later.pace_s - until_done)
        return Forecast(max(least, rest + until_done + behind + later.finish_s), pace, least)

    def least_s(self, rows: int, later: Forecast) -> float:
        """Seconds until the first of `rows` that wait is answered, where a batch of them is begun at once: what waits
        at the `later` stages is computed meanwhile.
        """
        own = self._service.of(min(self._max_rows, rows))
        return max(own + later.least_s, later.finish_s)

    def careful_s(self, rows: int, later: Forecast, now: float) -> float:
        """The same, by what such forecasts missed of late."""
        return self.least_s(rows, later) + self._late.upper(now)


class _Fading:
    """A running mean that loses half its value each second without news; what is news then counts for more."""

    __slots__ = ("_at", "_value")

    def __init__(self) -> None:
        self._value = 0.0
        self._at = 0.0

    def after(self, value: float, now: float) -> None:
        self._value += max(_SMOOTHING, 1.0 - self._kept(now)) * (value - self._value)
        self._at = now

    @property
    def last(self) -> float:
        """As of the last news."""
        return self._value

    def at(self, now: float) -> float:
        return self._value * self._kept(now)

    def _kept(self, now: float) -> float:
        return math.exp2(min(0.0, self._at - now))


class _Spread:
    """Fading mean and mean deviation (as in Jacobson, "Congestion avoidance and control", 1988)."""

    __slots__ = ("_deviation", "_mean")

    def __init__(self) -> None:
        self._mean = _Fading()
        self._deviation = _Fading()

    def after(self, value: float, now: float) -> None:
        self._deviation.after(abs(value - self._mean.last), now)
        self._mean.after(value, now)

    def upper(self, now: float) -> float:
        """Most values are below it; never negative."""
        return max(0.0, self._mean.at(now) + self._deviation.at(now))
