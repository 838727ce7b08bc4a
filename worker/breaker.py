"""When a replica that keeps failing gets work: a circuit breaker (Nygard, "Release It!", 2007), without clock or I/O.

Closed: it gets work. After so many failures in a row it is open: it gets none for a pause. Then one request tries it:
a success closes it (that is `CLOSED` again), a failure opens it for twice as long.
"""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class BreakerLimits:
    """failures: in a row, then the replica gets no work. pause_s, longest_pause_s: of its pauses, seconds."""

    failures: int = 5
    pause_s: float = 1.0
    longest_pause_s: float = 30.0


LIMITS: Final = BreakerLimits()


@dataclass(frozen=True, slots=True)
class Breaker:
    """One replica's. Times are on any one monotonic clock, seconds.

    failures: in a row. pause_s: of the newest pause; 0: it is closed. until: end of the pause.
    """

    failures: int = 0
    pause_s: float = 0.0
    until: float = 0.0

    @property
    def is_closed(self) -> bool:
        return not self.pause_s

    def allows(self, now: float) -> bool:
        """Whether the replica may get a request. One that is sent while it is not closed is told to `on_trial`."""
        return not self.pause_s or now >= self.until

    def on_trial(self, now: float) -> "Breaker":
        """A request tries the replica: no other does until it has ended, or until one more pause."""
        return Breaker(self.failures, self.pause_s, now + self.pause_s)

    def after_failure(self, now: float, limits: BreakerLimits = LIMITS) -> "Breaker":
        """While it is not closed, failures are of requests that were sent before: the pause stays as it is."""
        if self.pause_s:
            return self
        failures = self.failures + 1
        if failures < limits.failures:
            return Breaker(failures)
        return Breaker(failures, limits.pause_s, now + limits.pause_s)

    def after_failed_trial(self, now: float, limits: BreakerLimits = LIMITS) -> "Breaker":
        """The next pause is twice as long."""
        pause_s = min(limits.longest_pause_s, max(limits.pause_s, 2 * self.pause_s))
        return Breaker(self.failures + 1, pause_s, now + pause_s)


CLOSED: Final = Breaker()
