"""When a stage whose replicas die may start the next one. Pure: the time is handed in."""

from dataclasses import dataclass

LONGEST_PAUSE_S = 60.0
STEADY_AFTER_S = 10.0
"""A replica that has been ready this long shows that the stage does not crash at start: its failures are forgotten."""


@dataclass(frozen=True, slots=True)
class Failures:
    """A stage's deaths in a row. `retry_at` is on the controller's monotonic clock, seconds."""

    count: int = 0
    retry_at: float = 0.0
    last: str = ""

    def after(self, why: str, now: float) -> "Failures":
        """One more death. The first is repaired at once; then pauses double from 1 s up to LONGEST_PAUSE_S."""
        count = self.count + 1
        pause = 0.0 if count == 1 else min(LONGEST_PAUSE_S, 2.0 ** min(count - 2, 10))
        return Failures(count, now + pause, why)

    def held_back(self, now: float) -> str:
        """Why nothing may be started now; empty where it may."""
        return self.note if now < self.retry_at else ""

    @property
    def note(self) -> str:
        """What to tell of a stage that dies again and again. Without the count: it would change with every death."""
        return f"its replicas die one after the other, the last: {self.last}" if self.count > 1 else ""
