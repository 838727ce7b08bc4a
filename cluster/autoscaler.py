"""How many replicas each stage of a pipeline should have. Pure: what was measured and the time are handed in.

A stage's need is offered load, in replicas' worth of computing (Erlang's measure: rows a second times seconds a row),
over the utilisation that is aimed at, and what it takes to clear the backlog. So a burst is answered in one step, and
the answer does not depend on how often it is asked. A backlog goes on growing while the replicas load that it brought:
until they are there it keeps what was asked for, and asks for no more; a later stage that has all of its own asks for
what its own queue takes. What is measured holds only for its window, so a request that was cancelled or refused leaves
nothing behind.

Windows are on a monotonic clock. One that jumps starts the windows anew; nothing is scaled meanwhile.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

GAP_S = 10.0
"""Between two looks that are further apart, what was needed is not known: the delays start anew."""
SLACK = 1e-6
HANDOVER_S = 15.0
"""So long after a pipeline took over from another, or got requests back, they may still be counted as the other's."""
MISSED_SHARE = 0.01
"""Of the requests that end, so many must miss their deadline before replicas are added for them."""


@dataclass(frozen=True, slots=True)
class ScalingPolicy:
    """minimum, maximum: replicas of each stage. A minimum of 0 holds for all stages or none.

    target_utilisation: share of its time that a replica should compute, above 0 to 1.
    up_delay_s, down_delay_s: how long more, or less, must be needed before it is done.
    clear_backlog_s: a backlog should be gone within so long.
    deadline_s: of a request that brings none.
    """

    minimum: tuple[int, ...]
    maximum: tuple[int, ...]
    target_utilisation: float = 0.7
    up_delay_s: float = 1.0
    down_delay_s: float = 60.0
    clear_backlog_s: float = 2.0
    deadline_s: float = 30.0

    def coming_up(self) -> "ScalingPolicy":
        """For a pipeline that takes over from another: more is started at once, and some replica is always kept."""
        least = tuple(max(1, least) for least in self.minimum)
        return replace(self.keeping(), minimum=least, up_delay_s=0.0)

    def keeping(self) -> "ScalingPolicy":
        """For a pipeline that may get back what it gave to another: less is done only when all of it would be seen."""
        return replace(self, down_delay_s=max(self.down_delay_s, HANDOVER_S))

    def within(self, counts: Sequence[int]) -> tuple[int, ...]:
        return tuple(
            max(least, min(most, count)) for count, least, most in zip(counts, self.minimum, self.maximum, strict=True)
        )


@dataclass(frozen=True, slots=True)
class StageLoad:
    """ready: replicas. queued_rows: waiting or in work. seconds_per_row: of computing, as last measured.

    busy: replicas' worth of computing over the window.
    """

    ready: int = 0
    queued_rows: int = 0
    seconds_per_row: float = 0.0
    busy: float = 0.0


@dataclass(frozen=True, slots=True)
class Demand:
    """What is asked of one pipeline; while a roll-out is on, of the model.

    rows_per_s: that clients asked for over the window, refused or not.
    inflight: requests that gateways hold now. unplaced_rows: rows that wait at gateways since there is no replica.
    missed: requests that met no answer inside their deadline over the window. ended: all that ended, these among them.
    """

    stages: tuple[StageLoad, ...]
    rows_per_s: float = 0.0
    inflight: int = 0
    unplaced_rows: int = 0
    missed: int = 0
    ended: int = 0

    @property
    def any(self) -> bool:
        return bool(
            self.inflight
            or self.unplaced_rows
            or self.rows_per_s > 0
            or any(stage.queued_rows for stage in self.stages)
        )

    @property
    def costs_known(self) -> bool:
        """Whether a replica of each stage has told what a row costs, as each does that has warmed up."""
        return all(stage.seconds_per_row > 0 for stage in self.stages)


@dataclass(frozen=True, slots=True)
class Need:
    """replicas: of each stage, before bounds. urgent: deadlines will be missed, so no delay is waited for."""

    replicas: tuple[int, ...]
    urgent: bool
    why: str


@dataclass(frozen=True, slots=True)
class Scaling:
    """What a pipeline needed at each look so far, as far back as the delays go. `after` gives the next one.

    asked: how many replicas it was said to want at the last of them, whether or not there was room.
    """

    needs: tuple[tuple[float, tuple[int, ...]], ...] = field(default=())
    asked: tuple[int, ...] = ()

    def after(
        self, demand: Demand, current: tuple[int, ...], policy: ScalingPolicy, now: float
    ) -> tuple["Scaling", tuple[int, ...], str]:
        """Also how many replicas each stage should have (`current`: should have had until now), and why."""
        goes_on = bool(self.needs) and 0 <= now - self.needs[-1][0] <= GAP_S
        past = self.needs if goes_on else ()
        need = needed(demand, policy, tuple(map(max, current, self.asked)) if goes_on else current)
        bounded = policy.within(need.replicas)
        past = (*_since(past, now - max(policy.up_delay_s, policy.down_delay_s)), (now, bounded))
        from_zero = demand.any and not all(current)
        wanted = policy.within(
            [
                _one_stage(stage, current[stage], past, policy, now, at_once=need.urgent or from_zero)
                for stage in range(len(current))
            ]
        )
        return Scaling(past, wanted), wanted, need.why


def _one_stage(
    stage: int,
    current: int,
    past: Sequence[tuple[float, tuple[int, ...]]],
    policy: ScalingPolicy,
    now: float,
    *,
    at_once: bool,
) -> int:
    latest = past[-1][1][stage]
    if latest > current:
        recent = _over(past, now - policy.up_delay_s)
        if at_once or (recent and min(counts[stage] for counts in recent) > current):
            return latest
    elif latest < current:
        recent = _over(past, now - policy.down_delay_s)
        if recent:
            return min(current, max(counts[stage] for counts in recent))
    return current


def _over(past: Sequence[tuple[float, tuple[int, ...]]], start: float) -> list[tuple[int, ...]]:
    """What was needed from `start` on; nothing where the looks do not go so far back."""
    if past[0][0] > start + SLACK:
        return []
    return [counts for at, counts in past if at >= start - SLACK]


def _since(past: tuple[tuple[float, tuple[int, ...]], ...], start: float) -> tuple[tuple[float, tuple[int, ...]], ...]:
    """`past` from the last look before `start` on: that one shows that the window is covered."""
    first = next((place for place, (at, _) in enumerate(past) if at > start), len(past))
    return past[max(0, first - 1) :]


def needed(demand: Demand, policy: ScalingPolicy, asked: tuple[int, ...] = ()) -> Need:
    """What the demand needs now, without regard to bounds above or to what there is.

    asked: replicas of each stage that were asked for before; those not ready yet are on their way. Empty: none.
    """
    if not demand.any:
        return Need(tuple(0 for _ in demand.stages), False, "nobody asks for anything")
    clear_s = min(policy.clear_backlog_s, policy.deadline_s / 2)
    counts: list[int] = []
    urgent = False
    backlog = demand.unplaced_rows
    on_their_way = False
    for stage, before in zip(demand.stages, asked or (0,) * len(demand.stages), strict=True):
        backlog += stage.queued_rows
        on_their_way = on_their_way or before > stage.ready
        offered = max(demand.rows_per_s * stage.seconds_per_row, min(stage.busy, stage.ready))
        steady = offered / policy.target_utilisation
        clearing = backlog * stage.seconds_per_row / clear_s
        if on_their_way:
            own = stage.queued_rows * stage.seconds_per_row / clear_s if before <= stage.ready else 0.0
            clearing = min(clearing, max(own, before - steady))
        counts.append(max(1, math.ceil(steady + clearing - SLACK)))
        urgent = urgent or backlog * stage.seconds_per_row > stage.ready * policy.deadline_s / 2
    if _more_would_be_in_time(demand, counts, policy):
        busiest = max(range(len(counts)), key=lambda index: _utilisation(demand.stages[index]))
        counts[busiest] = demand.stages[busiest].ready + 1
    return Need(tuple(counts), urgent, _told(demand, backlog, urgent=urgent))


def _more_would_be_in_time(demand: Demand, counts: Sequence[int], policy: ScalingPolicy) -> bool:
    """Whether deadlines are missed for want of replicas. A deadline that no replica could keep asks for none."""
    if not demand.missed or demand.missed < MISSED_SHARE * demand.ended:
        return False
    if any(count > stage.ready for count, stage in zip(counts, demand.stages, strict=True)):
        return False
    return max(map(_utilisation, demand.stages)) > policy.target_utilisation / 2


def _utilisation(stage: StageLoad) -> float:
    return stage.busy / stage.ready if stage.ready else math.inf


def _told(demand: Demand, backlog: int, *, urgent: bool) -> str:
    """What was seen, for the log."""
    seen = [
        f"{demand.rows_per_s:.1f} rows/s are asked for",
        f"{demand.inflight} requests are in flight",
        f"{backlog} rows wait",
    ]
    seen += [
        f"stage {index} computes {stage.seconds_per_row * 1e3:.2f} ms a row and is busy "
        f"{100 * stage.busy / stage.ready if stage.ready else 0:.0f} % on {stage.ready} ready"
        for index, stage in enumerate(demand.stages)
    ]
    if demand.missed:
        seen.append(f"{demand.missed} requests missed their deadline")
    if urgent:
        seen.append("what waits would miss its deadline")
    return "; ".join(seen)
