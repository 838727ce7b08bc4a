"""How busy each stage was lately, by its workers' own counters. The time is handed in."""

from collections import deque
from collections.abc import Iterable, Mapping

from cluster.world import Stage
from worker.nouns import WorkerStats


class Meters:
    """Counts by what a worker's counters grew from one look to the next, so workers may come and go."""

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s
        self._before: dict[str, WorkerStats] = {}
        self._at: float | None = None
        self._grown: dict[Stage, deque[tuple[float, float, float, int]]] = {}
        self._cost: dict[Stage, float] = {}

    def look(self, workers: Iterable[tuple[str, Stage]], figures: Mapping[str, WorkerStats], now: float) -> None:
        """`workers`: each replica's id and stage."""
        elapsed = now - self._at if self._at is not None else 0.0
        if elapsed < 0:
            self._grown.clear()
        seen: dict[str, WorkerStats] = {}
        grown: dict[Stage, tuple[float, int]] = {}
        for replica, stage in workers:
            stats = seen[replica] = figures.get(replica, WorkerStats())
            before = self._before.get(replica)
            seconds, rows = grown.get(stage, (0.0, 0))
            if before is not None:
                seconds += max(0.0, stats.computing_s - before.computing_s)
                rows += max(0, stats.computed_rows - before.computed_rows)
            grown[stage] = seconds, rows
        for stage, (seconds, rows) in grown.items():
            looks = self._grown.setdefault(stage, deque())
            looks.append((now, max(0.0, elapsed), seconds, rows))
            while looks and now - looks[0][0] > self._window_s:
                looks.popleft()
            if rows:
                self._cost[stage] = seconds / rows
        self._before, self._at = seen, now

    def busy(self, stage: Stage) -> float:
        """Replicas' worth of computing."""
        elapsed = sum(look[1] for look in self._grown.get(stage, ()))
        return sum(look[2] for look in self._grown.get(stage, ())) / elapsed if elapsed else 0.0

    def rows_per_s(self, stage: Stage) -> float:
        elapsed = sum(look[1] for look in self._grown.get(stage, ()))
        return sum(look[3] for look in self._grown.get(stage, ())) / elapsed if elapsed else 0.0

    def seconds_per_row(self, stage: Stage) -> float:
        """As last measured, also when nothing was computed lately; 0 where nothing ever was."""
        looks = self._grown.get(stage, ())
        rows = sum(look[3] for look in looks)
        return sum(look[2] for look in looks) / rows if rows else self._cost.get(stage, 0.0)
