"""Follows what is asked of each pipeline and says how many replicas its stages should have now.

Measures (`meters`, `traffic`), asks the policy (`autoscaler`) and shares out the room (`fair_share`). Changes nothing.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from cluster.autoscaler import HANDOVER_S, Demand, Scaling, ScalingPolicy, StageLoad
from cluster.fair_share import Claim, fair_shares
from cluster.fleet import Bundle, Sighting
from cluster.handover import beside, comes_up
from cluster.meters import Meters
from cluster.state import ServedModel, State
from cluster.traffic import Traffic
from cluster.world import Pipeline, Stage
from worker.nouns import WorkerStats

WINDOW_S = 2.0
"""Over which rates are measured: short, since how long they must last is the policy's delays' business."""
LATELY_S = 1.0
ENOUGH_ROWS = 30
"""Where so many rows came in the last second, that second alone says how many come: a burst is not diluted."""


@dataclass(frozen=True, slots=True)
class Change:
    """A pipeline's stages should have so many replicas."""

    pipeline: Pipeline
    counts: tuple[int, ...]
    why: str


class Scaler:
    """`lacking`: bundles that are wanted and that there is no room for; `short`: the same, a line for each stage;
    `wanted`: replicas wanted, room or not.

    came_back_at: when its controller came back, to gateways that have to find it before they tell what they are asked.
    """

    def __init__(self, came_back_at: float = -math.inf) -> None:
        self._came_back_at = came_back_at
        self.meters = Meters(WINDOW_S)
        self.lacking: tuple[Bundle, ...] = ()
        self.short: tuple[str, ...] = ()
        self.wanted: dict[Pipeline, tuple[int, ...]] = {}
        self._scalings: dict[Pipeline, Scaling] = {}
        self._came_up: dict[Pipeline, float] = {}
        self._gave: dict[Pipeline, float] = {}
        """When it last shared its requests with one that comes up, which may be taken back."""

    def decide(self, state: State, sighting: Sighting, traffic: Traffic, now: float) -> list[Change]:
        """One look. Pipelines whose number of replicas is fixed never change, but take their room."""
        self.meters.look(((replica.id, replica.stage) for replica in sighting.replicas), sighting.figures, now)
        pipelines = {
            Pipeline(name, version, revision): (served, counts)
            for (name, revision), served in sorted(state.served.items())
            for version, counts in sorted(served.replicas.items())
        }
        wanted: dict[Pipeline, tuple[int, ...]] = {}
        whys: dict[Pipeline, str] = {}
        scalings: dict[Pipeline, Scaling] = {}
        others = beside(state)
        self._came_up = {pipeline: at for pipeline, at in self._came_up.items() if pipeline in pipelines}
        self._gave = {pipeline: at for pipeline, at in self._gave.items() if pipeline in pipelines}
        for pipeline, (served, counts) in pipelines.items():
            policy = self._policy(state, pipeline, served, now)
            if policy is None:
                wanted[pipeline] = counts
                continue
            demand = self.demand((pipeline, *others.get(pipeline, ())), len(counts), sighting, traffic, now)
            if comes_up(state, pipeline) and not demand.costs_known:
                wanted[pipeline] = self.wanted.get(pipeline, counts)
                whys[pipeline] = "what its stages cost is not known yet"
                continue
            before = self._scalings.get(pipeline, Scaling())
            scalings[pipeline], wanted[pipeline], whys[pipeline] = before.after(demand, counts, policy, now)
        self._scalings, self.wanted = scalings, wanted
        granted = self._shared_out(state, pipelines, wanted, sighting)
        return [
            Change(pipeline, granted[pipeline], _told(whys[pipeline], wanted[pipeline], granted[pipeline]))
            for pipeline, (_, counts) in pipelines.items()
            if pipeline in whys and granted[pipeline] != counts
        ]

    def _policy(self, state: State, pipeline: Pipeline, served: ServedModel, now: float) -> ScalingPolicy | None:
        """None: the number of replicas is fixed. Else another one while requests move, and shortly after."""
        if comes_up(state, pipeline):
            self._came_up[pipeline] = now
        elif pipeline.model in state.rollouts:
            self._gave[pipeline] = now
        policy = policy_of(served)
        if policy is None:
            return None
        if now - self._came_up.get(pipeline, -math.inf) < HANDOVER_S:
            return policy.coming_up()
        unseen_since = max(self._came_back_at, self._gave.get(pipeline, -math.inf))
        return policy.keeping() if now - unseen_since < HANDOVER_S else policy

    def demand(
        self, asked: Sequence[Pipeline], stages: int, sighting: Sighting, traffic: Traffic, now: float
    ) -> Demand:
        """Of the first of `asked`, with what it may have to take over of the others. What they miss is theirs."""
        pipeline = asked[0]
        recent = traffic.over(pipeline, WINDOW_S, now)
        lately_rows = sum(traffic.over(one, LATELY_S, now).arrived_rows for one in asked)
        steady = sum(traffic.over(one, WINDOW_S, now).arrived_rows for one in asked) / WINDOW_S
        return Demand(
            stages=tuple(
                self._load(Stage(pipeline.model, pipeline.version, index, pipeline.revision), sighting)
                for index in range(stages)
            ),
            rows_per_s=lately_rows / LATELY_S if lately_rows >= ENOUGH_ROWS else steady,
            inflight=sum(traffic.inflight(one, now) for one in asked),
            unplaced_rows=traffic.unplaced_rows(pipeline, now),
            missed=recent.missed,
            ended=recent.ended,
        )

    def _load(self, stage: Stage, sighting: Sighting) -> StageLoad:
        replicas = [replica for replica in sighting.replicas if replica.stage == stage]
        ready = [replica for replica in replicas if replica.takes_work]
        figures = [sighting.figures.get(replica.id, WorkerStats()) for replica in ready]
        told = [stats.seconds_per_row for stats in figures if stats.seconds_per_row > 0]
        return StageLoad(
            ready=len(ready),
            queued_rows=sum(stats.queued_rows for stats in figures),
            seconds_per_row=self.meters.seconds_per_row(stage) or (sum(told) / len(told) if told else 0.0),
            busy=self.meters.busy(stage),
        )

    def _shared_out(
        self,
        state: State,
        pipelines: Mapping[Pipeline, tuple[ServedModel, tuple[int, ...]]],
        wanted: Mapping[Pipeline, tuple[int, ...]],
        sighting: Sighting,
    ) -> dict[Pipeline, tuple[int, ...]]:
        if not sighting.nodes:
            return dict(wanted)
        claims = list(_claims(state, pipelines, wanted))
        capacity: dict[str, float] = {}
        for node in sighting.nodes:
            # What runs on a node that is drained runs on until there is room elsewhere: its share is not taken away.
            for kind, amount in (node.taken if node.drained else node.resources).items():
                capacity[kind] = capacity.get(kind, 0.0) + amount
        granted = fair_shares(claims, capacity)
        self.lacking = tuple(
            Bundle(settings.bundle, settings.labels)
            for (served, _), claim, counts in zip(pipelines.values(), claims, granted, strict=True)
            for index, (have, want) in enumerate(zip(counts, claim.wanted, strict=True))
            for settings in [served.config.stage(index)] * (want - have)
        )
        self.short = tuple(
            f"{pipeline} stage {index}: {want} replicas are wanted, and there is room for {have}"
            for pipeline, claim, counts in zip(pipelines, claims, granted, strict=True)
            for index, (have, want) in enumerate(zip(counts, claim.wanted, strict=True))
            if have < want
        )
        return dict(zip(pipelines, granted, strict=True))


def policy_of(served: ServedModel) -> ScalingPolicy | None:
    """None: the number of replicas is fixed."""
    bounds = served.bounds
    if bounds is None:
        return None
    scaling = served.config.autoscaling
    return ScalingPolicy(
        *bounds,
        target_utilisation=scaling.target_utilisation,
        up_delay_s=scaling.up_delay_s,
        down_delay_s=scaling.down_delay_s,
        clear_backlog_s=scaling.clear_backlog_s,
        deadline_s=served.config.deadline_s,
    )


def _claims(
    state: State,
    pipelines: Mapping[Pipeline, tuple[ServedModel, tuple[int, ...]]],
    wanted: Mapping[Pipeline, tuple[int, ...]],
) -> Iterator[Claim]:
    """In the order of `pipelines`. A roll-out's target comes after what serves."""
    places = {pipeline: place for place, pipeline in enumerate(pipelines)}
    for pipeline, (served, counts) in pipelines.items():
        serving = state.models[pipeline.model]
        after = [
            places[Pipeline(pipeline.model, version, serving.revision)]
            for version in serving.replicas
            if comes_up(state, pipeline)
        ]
        yield _claim(served, counts, wanted[pipeline], tuple(after))


def _claim(served: ServedModel, counts: tuple[int, ...], wanted: tuple[int, ...], after: tuple[int, ...]) -> Claim:
    """A scaled pipeline that is awake may have one replica of each stage in any case, a fixed one has all of them; a
    scaled one that shall take over gets only what is free.
    """
    floor = counts
    if served.bounds is not None:
        least = zip(served.bounds[0], wanted, strict=True)
        floor = tuple(0 if after else max(low, min(1, want)) for low, want in least)
    sharing = served.config.sharing
    bundles = tuple(served.config.stage(index).bundle for index in range(len(counts)))
    return Claim(bundles, floor, wanted, sharing.priority, sharing.weight, after)


def _told(why: str, wanted: tuple[int, ...], granted: tuple[int, ...]) -> str:
    return why if wanted == granted else f"{why}; {_listed(wanted)} would be needed, and other models want room too"


def _listed(counts: tuple[int, ...]) -> str:
    return " and ".join(map(str, counts))
