"""What a caller knows of one replica, and how much work it gets for that. Does no I/O; times are monotonic seconds.

Three things count: what waits there, as the replica tells it with its replies; how much later than that its answers
come, as the caller sees it (a slow link, a process that hardly gets to run); and whether it fails.
"""

import math

from worker.breaker import CLOSED
from worker.nouns import Load

_SMOOTHING = 0.2
"""Weight of the newest answer in the running mean of how late answers are."""
_SUSPECTED_S = 1.0
"""What a failure that nobody has looked into yet counts for, seconds of waiting."""


class Standing:
    """Of one replica, as one caller sees it."""

    __slots__ = (
        "_breaker",
        "_late",
        "_late_at",
        "_load",
        "_load_at",
        "_others_rows",
        "_sent_rows",
        "_suspicions",
        "resting_until",
        "rows",
    )

    def __init__(self, now: float) -> None:
        self.rows = 0
        self.resting_until = 0.0
        self._others_rows = 0
        self._sent_rows = 0
        self._load = Load()
        self._load_at = now
        self._late = 0.0
        self._late_at = now
        self._suspicions = 0
        self._breaker = CLOSED

    def expected_wait(self, now: float, oldest: float) -> float:
        """Seconds to compare replicas by, for one more row. `oldest`: when the longest unanswered request was sent.

        What waits there times what a row takes there, plus how late its answers are times what this caller has there
        (as in "peak EWMA", Twitter's Finagle). Both figures lose half their weight each second, so that what was slow
        once gets work again, to prove itself with.
        """
        wait = self._by_load(now)
        late = max(self._late * math.exp2(self._late_at - now), now - oldest - wait)
        return wait + late * (self.rows + 1) + self._suspicions * _SUSPECTED_S

    def expected_finish(self, now: float, rows: int) -> float:
        """Seconds until `rows` that are sent now are answered, by what the replica last told; 0: it told nothing."""
        told = self._load.forecast
        if not told.finish_s:
            return 0.0
        waits = max(told.least_s, told.finish_s - (now - self._load_at))
        return waits + (self._sent_rows + rows - 1) * told.pace_s

    def least_finish(self, rows: int) -> float:
        """Seconds until `rows` are answered that have nothing before them; 0: it told nothing."""
        told = self._load.forecast
        return told.least_s + (rows - 1) * told.pace_s if told.least_s else 0.0

    @property
    def pace_s(self) -> float:
        """Seconds that it takes for each of many rows; 0: it told nothing."""
        return self._load.forecast.pace_s

    def sent(self, rows: int, now: float) -> float:
        """Counts a request of `rows`; when its answer is expected by what waits there."""
        due = now + self._by_load(now)
        self.rows += rows
        self._sent_rows += rows
        return due

    def ended(self, rows: int) -> None:
        self.rows -= rows

    def told(self, load: Load, now: float) -> None:
        self._load, self._load_at = load, now
        self._others_rows = max(0, load.queued_rows - self.rows)
        self._sent_rows = 0

    def answered(self, due: float, now: float) -> None:
        """An answer that was `due` came `now`."""
        late = self._late * math.exp2(self._late_at - now)
        self._late = late + _SMOOTHING * (max(0.0, now - due) - late)
        self._late_at = now

    def trial(self, now: float) -> bool:
        """Whether the request that is about to be sent is a trial after a pause; told to `succeeded` or `failed`."""
        if self._breaker.is_closed:
            return False
        self._breaker = self._breaker.on_trial(now)
        self.resting_until = self._breaker.until
        return True

    @property
    def is_well(self) -> bool:
        """It has answered since its last pause, or had none."""
        return self._breaker.is_closed

    def suspect(self, by: int = 1) -> None:
        """It failed on a request that another replica is asked about now; `by` -1: that one has been heard."""
        self._suspicions += by

    def succeeded(self) -> bool:
        """Whether its failures are forgotten with this, and a pause that they brought."""
        if self._breaker is CLOSED:
            return False
        self._breaker = CLOSED
        self.resting_until = 0.0
        return True

    def failed(self, now: float, *, trial: bool) -> bool:
        """It failed where another replica did not; whether it is taken out with this."""
        was_closed = self._breaker.is_closed
        self._breaker = self._breaker.after_failed_trial(now) if trial else self._breaker.after_failure(now)
        self.resting_until = self._breaker.until
        return was_closed and not self._breaker.is_closed

    def _by_load(self, now: float) -> float:
        seconds_per_row = self._load.seconds_per_row * math.exp2(self._load_at - now) + 1e-6
        return (self.rows + self._others_rows + 1) * seconds_per_row
