"""What to do next: a pure function from what is wanted and seen to a list of actions. No Ray, no clock, no I/O.

Scale up: start → (loads, warms up) → told its next stage → in its callers' tables. Scale down: out of its callers'
tables → drain → stop. So no request meets a replica that is not ready, and none is lost when one goes.

A node that is drained: another replica starts elsewhere → its own goes as above. Where there is no room, it serves on.

Each call looks at the world anew; what it returned before does not matter. Repeated, it converges.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from cluster.world import Phase, Pipeline, Replica, Route, Stage, World


@dataclass(frozen=True, slots=True)
class Start:
    """Start one more replica of `stage`."""

    stage: Stage
    why: str


@dataclass(frozen=True, slots=True)
class Leave:
    """Take the replica out of every table made from now on."""

    replica: str
    why: str


@dataclass(frozen=True, slots=True)
class Tell:
    """Tell a worker the replicas of its next stage."""

    replica: str
    next_stage: Mapping[str, str]
    why: str


@dataclass(frozen=True, slots=True)
class Publish:
    """Send gateways a new route table."""

    routes: tuple[Route, ...]
    why: str


@dataclass(frozen=True, slots=True)
class Drain:
    """Have the replica answer what it owes; nobody calls it any more."""

    replica: str
    why: str


@dataclass(frozen=True, slots=True)
class Stop:
    """End the replica's process, if it still lives, and forget it."""

    replica: str
    why: str


Action = Start | Leave | Tell | Publish | Drain | Stop


def plan(world: World) -> list[Action]:
    """What to do now, in this order. An empty list: nothing to do until something changes."""
    stages = sorted({*world.desired, *(replica.stage for replica in world.replicas)})
    actions: list[Action] = []
    for stage in stages:
        actions += _bury(world.of(stage))
        actions += _adjust(world, stage)
    for stage in stages:
        actions += _tell(world, stage)
    actions += _publish(world)
    for stage in stages:
        actions += _drain(world, stage)
    return actions


def routes(world: World) -> tuple[Route, ...]:
    """What gateways should know of every version that is wanted."""
    return tuple(_route(world, pipeline) for pipeline in sorted({stage.pipeline for stage in world.desired}))


def _route(world: World, pipeline: Pipeline) -> Route:
    replicas, reason = _reachable(world, pipeline)
    weight = world.weights.get((pipeline.model, pipeline.revision), 100)
    return Route(pipeline.model, pipeline.version, replicas, reason, pipeline.revision, weight)


def _reachable(world: World, pipeline: Pipeline) -> tuple[dict[str, str], str]:
    """Whom gateways may call, and why the pipeline does not answer, where it does not."""
    stages = sorted(stage for stage in world.desired if stage.pipeline == pipeline)
    replicas = {
        replica.id: replica.address
        for replica in world.of(stages[0])
        if replica.takes_work and _can_hand_on(world, replica)
    }
    if not any(world.desired[stage] for stage in stages):
        return replicas, "it is being stopped" if world.stopping else "nobody asked for it; the next request wakes it"
    for stage in stages:
        if not any(replica.takes_work for replica in world.of(stage)):
            note = world.notes.get(stage)
            return replicas, f"stage {stage.index} has no ready replica" + (f": {note}" if note else "")
    return replicas, "" if replicas else "its stages do not know each other yet"


def _can_hand_on(world: World, replica: Replica) -> bool:
    """Whether it knows whom to send what it computed. One that an earlier controller told is taken to know."""
    return replica.stage.after not in world.desired or replica.told is None or bool(replica.told)


def _bury(replicas: list[Replica]) -> Iterator[Action]:
    for replica in replicas:
        if replica.phase is Phase.DEAD:
            yield Stop(replica.id, f"it is dead: {replica.why}")
        elif replica.phase is Phase.DRAINED:
            yield Stop(replica.id, "it owes nothing any more")


def _adjust(world: World, stage: Stage) -> Iterator[Action]:
    """Starts what is missing, or chooses who goes."""
    replicas = world.of(stage)
    if any(replica.phase is Phase.UNKNOWN for replica in replicas):
        return  # what it is decides whether one is missing
    desired = world.desired.get(stage, 0)
    serving = [replica for replica in replicas if replica.takes_work]
    coming = [replica for replica in replicas if replica.coming]
    displaced = sum(replica.displaced for replica in serving)
    why = f"{stage} has {len(serving)} ready and {len(coming)} coming of {desired}"
    why += f", {displaced} of them on nodes that are drained" if displaced else ""
    for replica in replicas:
        if replica.displaced and replica.phase in (Phase.PENDING, Phase.STARTING):
            yield Stop(replica.id, "its node is drained, and it has taken no work yet")
    missing = desired - (len(serving) - displaced) - len(coming)
    if missing > 0:
        if stage not in world.held_back:
            yield from [Start(stage, why)] * missing
        return
    surplus = -missing
    least_far_first = sorted(coming, key=lambda replica: (replica.phase is Phase.STARTING, replica.id))
    for replica in least_far_first[:surplus]:
        yield Stop(replica.id, f"{why}; it has taken no work yet")
    if len(serving) <= desired or (desired == 0 and _upstream_lives(world, stage)):
        return
    least_useful_first = sorted(
        serving, key=lambda replica: (_can_hand_on(world, replica), replica.queued_rows, replica.seat, replica.id)
    )
    leaving = len(serving) - desired
    if displaced:
        least_useful_first = [replica for replica in least_useful_first if replica.displaced]
        able = sum(_can_hand_on(world, replica) for replica in serving if not replica.displaced)
        leaving = max(0, displaced + able - desired)
    for replica in least_useful_first[:leaving]:
        yield Leave(replica.id, why)


def _upstream_lives(world: World, stage: Stage) -> bool:
    """Whether the stage before may still need this one to finish what it owes."""
    return stage.index > 0 and any(replica.living for replica in world.of(stage.before))


def _tell(world: World, stage: Stage) -> Iterator[Action]:
    callers = [replica for replica in world.of(stage) if replica.phase in (Phase.READY, Phase.DRAINING)]
    after = world.of(stage.after)
    if not callers or (stage.after not in world.desired and not after):
        return
    if any(replica.phase is Phase.UNKNOWN for replica in after):
        return
    next_stage = {
        replica.id: replica.address for replica in after if replica.takes_work and _can_hand_on(world, replica)
    }
    for replica in callers:
        if replica.asked != next_stage:
            yield Tell(replica.id, next_stage, f"{stage.after} has {len(next_stage)} ready")


def _publish(world: World) -> Iterator[Action]:
    if world.published is None and any(replica.phase is Phase.UNKNOWN for replica in world.replicas):
        return  # gateways keep the table they have until the living workers have all been seen
    now = routes(world)
    if now != world.published:
        yield Publish(now, "; ".join(_told_of(route) for route in now) or "nothing is served")


def _told_of(route: Route) -> str:
    name = str(route.pipeline)
    if route.reason:
        return f"{name} is not ready: {route.reason}"
    share = f"{route.weight} % of the " if route.weight < 100 else ""
    return f"{name} takes {share}requests at {sorted(route.replicas)}"


def _drain(world: World, stage: Stage) -> Iterator[Action]:
    for replica in world.of(stage):
        if replica.leaving and replica.phase is Phase.READY and not _may_be_called(world, replica):
            yield Drain(replica.id, "it is in no caller's table any more")


def _may_be_called(world: World, replica: Replica) -> bool:
    if replica.stage.index == 0:
        if world.published is None or not world.confirmed:
            return True
        return any(replica.id in route.replicas for route in world.published)
    callers = (caller for caller in world.of(replica.stage.before) if caller.phase in (Phase.READY, Phase.DRAINING))
    return any(caller.told is None or replica.id in caller.told for caller in callers)
