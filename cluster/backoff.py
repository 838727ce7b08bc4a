"""When a stage whose replicas die may start the next one. Pure: the time is handed in."""

from collections.abc import Iterable
from dataclasses import dataclass

from cluster.world import Phase, Replica, Stage

LONGEST_PAUSE_S = 60.0
STEADY_AFTER_S = 10.0
"""A replica that came after the last death and is ready for so long shows that the stage does not crash at start."""


@dataclass(frozen=True, slots=True)
class Failures:
    """A stage's deaths in a row. `retry_at`, `last_at`: on the controller's monotonic clock, seconds."""

    count: int = 0
    retry_at: float = 0.0
    last: str = ""
    last_at: float = 0.0

    def after(self, why: str, now: float) -> "Failures":
        """One more death. The first is repaired at once; then pauses double from 1 s up to LONGEST_PAUSE_S."""
        count = self.count + 1
        pause = 0.0 if count == 1 else min(LONGEST_PAUSE_S, 2.0 ** min(count - 2, 10))
        return Failures(count, now + pause, why, now)

    def held_back(self, now: float) -> str:
        """Why nothing may be started now; empty where it may."""
        return self.note if now < self.retry_at else ""

    @property
    def note(self) -> str:
        """What to tell of a stage that dies again and again. Without the count: it would change with every death."""
        return f"its replicas die one after the other, the last: {self.last}" if self.count > 1 else ""


class Deaths:
    """`failures`: of each stage, by one look at the replicas after the other. A stage that does not crash has none."""

    def __init__(self) -> None:
        self.failures: dict[Stage, Failures] = {}
        self._ready_since: dict[str, float] = {}
        self._counted: set[str] = set()

    @property
    def notes(self) -> dict[Stage, str]:
        """What to tell of the stages that die again and again."""
        return {stage: one.note for stage, one in self.failures.items() if one.note}

    def held_back(self, now: float) -> dict[Stage, str]:
        """Those of them that may start nothing now, and why."""
        return {stage: note for stage, note in self.notes.items() if self.failures[stage].held_back(now)}

    def look(self, replicas: Iterable[Replica], now: float) -> None:
        """A death counts once, however often it is seen. A sibling that served before proves nothing against it."""
        ready_since: dict[str, float] = {}
        dead: set[str] = set()
        for replica in replicas:
            if replica.phase is Phase.DEAD and not replica.leaving:
                dead.add(replica.id)
                if replica.id not in self._counted:
                    self._died(replica, now)
            elif replica.takes_work:
                ready_since[replica.id] = self._ready_since.get(replica.id, now)
                self._lives(replica.stage, ready_since[replica.id], now)
        self._ready_since, self._counted = ready_since, dead

    def _died(self, replica: Replica, now: float) -> None:
        """One that had been steady did not crash at start: as many as die with their node are no crash loop."""
        known = self.failures.get(replica.stage)
        steady = now - self._ready_since.get(replica.id, now) >= STEADY_AFTER_S
        if known is None or not steady:
            self.failures[replica.stage] = (known or Failures()).after(replica.why, now)

    def _lives(self, stage: Stage, since: float, now: float) -> None:
        known = self.failures.get(stage)
        if known is not None and since > known.last_at and now - since >= STEADY_AFTER_S:
            del self.failures[stage]
