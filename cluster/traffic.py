"""What gateways were asked for, by their reports. Knows neither gRPC nor the clock: the time is handed in.

A gauge (what is held now) counts while its gateway reports, and no longer. A counter counts by what it grew since the
report before, so a report that is lost, sent twice, or comes from a process that began anew changes nothing else.
"""

from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from cluster.world import Pipeline
from worker.histogram import quantile

WINDOW_S = 10.0
"""What people are shown is over so long."""
SILENT_S = 5.0
"""A gateway that has not reported for so long holds nothing that we know of."""


@dataclass(frozen=True, slots=True)
class Counts:
    """Requests, except `arrived_rows`. failed: the server's fault. took, refusal_took: answers, and refusals inside a
    gateway, by bucket of `worker.histogram`.
    """

    arrived_rows: int = 0
    answered: int = 0
    failed: int = 0
    refused: int = 0
    missed: int = 0
    took: Mapping[int, int] = field(default_factory=dict)
    refusal_took: Mapping[int, int] = field(default_factory=dict)

    def since(self, before: "Counts") -> "Counts":
        """How much more this is. What did not grow counts as nothing."""
        return Counts(
            arrived_rows=max(0, self.arrived_rows - before.arrived_rows),
            answered=max(0, self.answered - before.answered),
            failed=max(0, self.failed - before.failed),
            refused=max(0, self.refused - before.refused),
            missed=max(0, self.missed - before.missed),
            took=_grown(before.took, self.took),
            refusal_took=_grown(before.refusal_took, self.refusal_took),
        )

    @property
    def ended(self) -> int:
        return self.answered + self.failed + self.missed

    def quantile_s(self, share: float) -> float:
        """Seconds that `share` of the answers took at most."""
        return quantile(self.took, share)


def total(counts: Iterable[Counts]) -> Counts:
    known = tuple(counts)
    return Counts(
        arrived_rows=sum(each.arrived_rows for each in known),
        answered=sum(each.answered for each in known),
        failed=sum(each.failed for each in known),
        refused=sum(each.refused for each in known),
        missed=sum(each.missed for each in known),
        took=_sum(each.took for each in known),
        refusal_took=_sum(each.refusal_took for each in known),
    )


def _grown(before: Mapping[int, int], after: Mapping[int, int]) -> dict[int, int]:
    return {bucket: count - before.get(bucket, 0) for bucket, count in after.items() if count > before.get(bucket, 0)}


def _sum(histograms: Iterable[Mapping[int, int]]) -> Counter[int]:
    added: Counter[int] = Counter()
    for histogram in histograms:
        added.update(histogram)
    return added


@dataclass(frozen=True, slots=True)
class Lane:
    """One pipeline as one gateway sees it. unplaced_rows: of what waits since there is no replica."""

    inflight: int = 0
    unplaced_rows: int = 0
    counts: Counts = field(default_factory=Counts)


@dataclass(frozen=True, slots=True)
class Report:
    """generation: of the route table that the gateway has put in force."""

    gateway: str
    generation: int
    lanes: Mapping[Pipeline, Lane]


@dataclass(frozen=True, slots=True)
class Rates:
    """Of one pipeline over a window."""

    requests_per_s: float = 0.0
    rows_per_s: float = 0.0
    failed_per_s: float = 0.0
    refused_per_s: float = 0.0
    p50_s: float = 0.0
    p99_s: float = 0.0
    refusal_p50_s: float = 0.0
    refusal_p99_s: float = 0.0


class Traffic:
    """All gateways' reports. Times are seconds on one monotonic clock."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[float, Report]] = {}
        self._grown: dict[Pipeline, deque[tuple[float, Counts]]] = {}
        self._totals: dict[Pipeline, Counts] = {}

    def heard(self, report: Report, now: float) -> bool:
        """Takes a report in. True where it tells of requests that wait for a first replica, which it did not before."""
        self._forget(now)
        before = self._last.get(report.gateway)
        self._last[report.gateway] = (now, report)
        if before is None:
            return any(lane.unplaced_rows for lane in report.lanes.values())
        for pipeline, lane in report.lanes.items():
            known = before[1].lanes.get(pipeline)
            grown = lane.counts.since(known.counts if known else Counts())
            self._grown.setdefault(pipeline, deque()).append((now, grown))
            self._totals[pipeline] = total((self._totals.get(pipeline, Counts()), grown))
        waited = {pipeline for pipeline, lane in before[1].lanes.items() if lane.unplaced_rows}
        return any(lane.unplaced_rows and pipeline not in waited for pipeline, lane in report.lanes.items())

    def confirmed(self, generation: int, now: float) -> bool:
        """Whether every gateway that is heard of has put this route table, or a later one, in force.

        Where none is heard of, nobody has: there may be some that have not found a new controller yet.
        """
        return self.heard_of_any(now) and all(report.generation >= generation for report in self._reports(now))

    def heard_of_any(self, now: float) -> bool:
        """Whether any gateway reports."""
        return bool(self._reports(now))

    def inflight(self, pipeline: Pipeline, now: float) -> int:
        return sum(report.lanes[pipeline].inflight for report in self._reports(now) if pipeline in report.lanes)

    def unplaced_rows(self, pipeline: Pipeline, now: float) -> int:
        return sum(report.lanes[pipeline].unplaced_rows for report in self._reports(now) if pipeline in report.lanes)

    def over(self, pipeline: Pipeline, window_s: float, now: float) -> Counts:
        """What was counted in the last `window_s` seconds, up to `WINDOW_S`."""
        return total(counts for at, counts in self._grown.get(pipeline, ()) if now - window_s < at <= now)

    def total(self, pipeline: Pipeline) -> Counts:
        """Since this controller began."""
        return self._totals.get(pipeline, Counts())

    def rates(self, pipeline: Pipeline, now: float) -> Rates:
        seen = self.over(pipeline, WINDOW_S, now)
        return Rates(
            requests_per_s=(seen.ended + seen.refused) / WINDOW_S,
            rows_per_s=seen.arrived_rows / WINDOW_S,
            failed_per_s=(seen.failed + seen.missed) / WINDOW_S,
            refused_per_s=seen.refused / WINDOW_S,
            p50_s=seen.quantile_s(0.5),
            p99_s=seen.quantile_s(0.99),
            refusal_p50_s=quantile(seen.refusal_took, 0.5),
            refusal_p99_s=quantile(seen.refusal_took, 0.99),
        )

    def keep(self, pipelines: Iterable[Pipeline]) -> None:
        """Forgets every other pipeline."""
        kept = set(pipelines)
        for known in (self._grown, self._totals):
            for pipeline in known.keys() - kept:
                del known[pipeline]

    def _reports(self, now: float) -> list[Report]:
        return [report for at, report in self._last.values() if 0 <= now - at <= SILENT_S]

    def _forget(self, now: float) -> None:
        self._last = {name: (at, report) for name, (at, report) in self._last.items() if 0 <= now - at <= SILENT_S}
        for grown in self._grown.values():
            while grown and not 0 <= now - grown[0][0] <= WINDOW_S:
                grown.popleft()
