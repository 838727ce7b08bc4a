"""Roll-outs as they go on: keeps what each has seen so far, and takes `rollout`'s decisions into the state.

Times are on the controller's monotonic clock and are not stored: a controller that comes back watches anew.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from cluster.backoff import Failures
from cluster.fleet import Node, Sighting
from cluster.handover import at_least, begins_with
from cluster.placement import why_nowhere
from cluster.rollout import Finish, Seen, Share, Step, TakeBack, next_step
from cluster.state import HistoryEntry, Rollout, ServedModel, State
from cluster.traffic import Counts, Traffic, total
from cluster.world import Pipeline, Stage
from worker.errors import InvalidRequest, NotFound


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the controller sees. notes: why stages wait. wanted: replicas of each pipeline's stages, room or not.

    reachable: replicas of each pipeline's stage 0 that every gateway knows, none where the pipeline does not answer.
    """

    sighting: Sighting
    traffic: Traffic
    failures: Mapping[Stage, Failures]
    notes: Mapping[Stage, str]
    reachable: Mapping[Pipeline, int]
    wanted: Mapping[Pipeline, tuple[int, ...]]
    now: float


@dataclass(frozen=True, slots=True)
class _Watched:
    """One roll-out since it began, and since its present share: then what had been counted of the old and the new."""

    revision: int
    began: float
    share: int
    shared_at: float
    old: Counts
    new: Counts


class Rolling:
    """`shown`: where each model's roll-out stands, for people."""

    def __init__(self) -> None:
        self.shown: dict[str, str] = {}
        self._watched: dict[str, _Watched] = {}

    def steps(self, state: State, evidence: Evidence, unix_s: float) -> Iterator[tuple[State, str, str]]:
        """Each roll-out's next step: the state with it, what it is, and why."""
        self._watched = {name: known for name, known in self._watched.items() if name in state.rollouts}
        self.shown = {name: shown for name, shown in self.shown.items() if name in state.rollouts}
        for name, rollout in state.rollouts.items():
            step = next_step(rollout, self._seen(name, rollout, state.models[name], evidence))
            target = f"revision {rollout.target.revision} of {name}"
            self.shown[name] = f"{target} gets {rollout.share} % of the requests; {step.why}"
            changed = after(state, name, step, unix_s)
            if changed is not None:
                state = changed
                yield state, _what(step, target), step.why

    def _seen(self, name: str, rollout: Rollout, before: ServedModel, evidence: Evidence) -> Seen:
        now, totals = evidence.now, evidence.traffic.total
        old = total(map(totals, _pipelines(name, before)))
        new = total(map(totals, _pipelines(name, rollout.target)))
        watched = self._watched.get(name)
        if watched is None or watched.revision != rollout.target.revision or now < watched.began:
            watched = _Watched(rollout.target.revision, now, rollout.share, now, old, new)
        elif watched.share != rollout.share:
            watched = _Watched(watched.revision, watched.began, rollout.share, now, old, new)
        self._watched[name] = watched
        stages = _needed(rollout.target.stages_of(name), evidence)
        return Seen(
            ready=_ready(stages, evidence),
            coming_s=now - watched.began,
            sharing_s=now - watched.shared_at,
            waits=_waits(stages, rollout.target.stages_of(name), evidence),
            deaths=max((evidence.failures[stage].count for stage in stages if stage in evidence.failures), default=0),
            old=old.since(watched.old),
            new=new.since(watched.new),
        )


def _needed(stages: Mapping[Stage, int], evidence: Evidence) -> dict[Stage, int]:
    """Replicas that it takes to give a pipeline all requests: those it shall have, and those it finds no room for."""
    return {
        stage: max(1, count, evidence.wanted[stage.pipeline][stage.index] if stage.pipeline in evidence.wanted else 0)
        for stage, count in stages.items()
    }


def _ready(needed: Mapping[Stage, int], evidence: Evidence) -> bool:
    """Whether so many serve, and have told what a row costs them: before that, nobody knows how many it takes."""
    figures = evidence.sighting.figures
    serving = Counter(
        replica.stage
        for replica in evidence.sighting.replicas
        if replica.takes_work and replica.id in figures and figures[replica.id].seconds_per_row > 0
    )
    return all(
        serving[stage] >= count and (stage.index > 0 or evidence.reachable.get(stage.pipeline, 0) >= count)
        for stage, count in needed.items()
    )


def _waits(needed: Mapping[Stage, int], stages: Mapping[Stage, int], evidence: Evidence) -> str:
    """Why a pipeline is not ready, where more is known than that."""
    notes = [evidence.notes[stage] for stage in stages if stage in evidence.notes]
    short = [
        f"stage {stage.index} should have {needed[stage]} replicas, and there is room for {count}"
        for stage, count in stages.items()
        if count < needed[stage]
    ]
    return next(iter(notes + short), "")


def after(state: State, name: str, step: Step, unix_s: float) -> State | None:
    """The state with a roll-out's step taken; None: nothing changes."""
    rollout = state.rollouts[name]
    rest = {model: other for model, other in state.rollouts.items() if model != name}
    match step:
        case Share(percent, _):
            return state.model_copy(update={"rollouts": {**rest, name: rollout.model_copy(update={"share": percent})}})
        case Finish(why):
            entry = _entry(unix_s, name, "rolled out", f"{rollout.why}; {why}", rollout.target)
            served = {**state.models, name: rollout.target}
            history = _as_it_ended(state.history, name, state.models[name])
            changed = state.model_copy(update={"models": served, "rollouts": rest, "history": history})
            return changed.remembering(entry)
        case TakeBack(why):
            entry = _entry(unix_s, name, "taken back", why, rollout.target)
            return state.model_copy(update={"rollouts": rest}).remembering(entry)
    return None


def begun(state: State, name: str, rollout: Rollout, nodes: tuple[Node, ...], *, even_without_room: bool) -> State:
    """The state with a roll-out of `rollout.target`, which gets its revision number and its replicas here.

    Raises InvalidRequest where one is on its way already, where clients would have to send other tensors, or where no
    node could hold a replica of it.
    """
    underway = state.rollouts.get(name)
    if underway is not None:
        raise InvalidRequest(
            f"a roll-out of {name} is on its way (revision {underway.target.revision}, {underway.share} % of the "
            f"requests); wait until it ends, or `shardline rollback {name}`"
        )
    if _contract(rollout.target) != _contract(state.models[name]):
        raise InvalidRequest(
            f"{name} would take or give other tensors than now, so requests of today's clients would fail; package it "
            "under another name, serve both, and move the clients"
        )
    config = rollout.target.config
    for index in range(config.stages):
        nowhere = why_nowhere(config.stage(index), nodes) if nodes and not even_without_room else ""
        if nowhere:
            raise InvalidRequest(
                f"{name} stage {index} cannot be placed: {nowhere}; if Ray's autoscaler adds such nodes, say "
                "--even-without-room. What was serving keeps serving"
            )
    target = begins_with(rollout.target, state.models[name])
    target = target.model_copy(update={"revision": state.next_revision(name)})
    return state.model_copy(
        update={"rollouts": {**state.rollouts, name: rollout.model_copy(update={"target": target})}}
    )


def earlier(state: State, name: str, revision: int) -> ServedModel:
    """What served before, or as that revision, with no fewer replicas than serve now. Raises NotFound."""
    if name not in state.models:
        raise NotFound(f"no model {name!r} is served; served: {', '.join(sorted(state.models)) or 'none'}")
    now = state.models[name].revision
    served = [
        entry.served
        for entry in state.history
        if entry.model == name and entry.what != "taken back" and entry.served.revision != now
    ]
    found = [one for one in served if one.revision == revision] if revision else served
    if not found:
        known = ", ".join(str(one.revision) for one in served) or "none"
        which = f"no revision {revision} to go back to" if revision else "nothing to go back to"
        raise NotFound(f"{name}: {which}; revisions that served before: {known} (`shardline history {name}`)")
    return at_least(found[-1], state.models[name])


def taken_back(state: State, name: str, why: str, unix_s: float) -> State:
    """Without the roll-out that is on its way."""
    return after(state, name, TakeBack(why), unix_s) or state


def _as_it_ended(history: tuple[HistoryEntry, ...], name: str, served: ServedModel) -> tuple[HistoryEntry, ...]:
    """With the replicas that a revision had last: with those, a rollback to it begins."""
    return tuple(
        entry.model_copy(update={"served": served})
        if (entry.model, entry.served.revision) == (name, served.revision)
        else entry
        for entry in history
    )


def _entry(unix_s: float, name: str, what: str, why: str, served: ServedModel) -> HistoryEntry:
    return HistoryEntry(unix_s=unix_s, model=name, what=what, why=why, served=served)


def _what(step: Step, target: str) -> str:
    match step:
        case Share(percent, _):
            return f"give {target} {percent} % of the requests"
        case Finish(_):
            return f"give {target} all requests and drain the one before"
        case _:
            return f"take {target} back"


def _pipelines(name: str, served: ServedModel) -> list[Pipeline]:
    return [Pipeline(name, version, served.revision) for version in served.replicas]


def _contract(served: ServedModel) -> object:
    """Names, datatypes and shapes of what a client that names no version sends and gets."""
    signature = served.signatures.get(max(served.replicas))
    if signature is None:
        return None
    return [
        sorted((spec.name, spec.datatype, spec.shape) for spec in specs)
        for specs in (signature.inputs, signature.outputs)
    ]
