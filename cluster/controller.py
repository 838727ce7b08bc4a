"""Keeps the cluster as it is wanted: observe → plan → act, one step a call. Knows neither Ray nor gRPC.

What is wanted is stored before it is acted upon, and only by the newest controller (see `cluster.store`). So a
controller that dies and comes back goes on where it was: it finds the living workers again and restarts none of them.
"""

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cluster.backoff import Deaths
from cluster.fleet import Bundle, Fleet, Sighting, alike, shown
from cluster.plan import Action, Drain, Leave, Publish, Start, Stop, Tell, plan, routes
from cluster.repository import changes
from cluster.rolling import Evidence, Rolling, begun, earlier, taken_back
from cluster.route_feed import RouteFeed
from cluster.route_table import route_table
from cluster.scaling import Scaler
from cluster.state import HistoryEntry, Rollout, State
from cluster.store import Store, Superseded
from cluster.traffic import Report, Traffic
from cluster.world import Pipeline, Route, Stage, World
from worker.errors import Unavailable

logger = logging.getLogger(__name__)

KEPT_DECISIONS = 100
STEP_INTERVAL_S = 0.5
"""Between steps that find nothing to do."""
LOOK_AT_FILES_S = 2.0
CONFIRM_WITHIN_S = 10.0
"""A gateway that has not put a route table in force for so long is not waited for; nor is one that nobody heard of."""
BACK_WITHIN_S = 7.0
"""Gateways find a controller that came back within this (`gateway.watch.WatchTimings`); before, some may lack."""
FAILED_STEPS = 20
"""So many in a row, and the controller gives up: Ray starts it anew."""


@dataclass(frozen=True, slots=True)
class Decision:
    """what: the action. why: what was seen."""

    unix_s: float
    what: str
    why: str


class Controller:
    """Belongs to one event loop. epoch: that it got when it claimed `store`, which it must have done before."""

    def __init__(
        self,
        fleet: Fleet,
        store: Store,
        state: State,
        *,
        epoch: int = 0,
        monotonic: Callable[[], float] = time.monotonic,
        step_interval_s: float = STEP_INTERVAL_S,
    ) -> None:
        self._fleet = fleet
        self._store = store
        self.epoch = epoch
        self.state = _with_history(state)
        self._monotonic = monotonic
        self._step_interval_s = step_interval_s
        self.feed = RouteFeed()
        self.sighting = Sighting(())
        self.traffic = Traffic()
        self.scaler = Scaler(monotonic()) if state.generation else Scaler()
        self.rolling = Rolling()
        self.decisions: deque[Decision] = deque(maxlen=KEPT_DECISIONS)
        self._published: tuple[Route, ...] | None = None
        self._published_at = monotonic()
        self._all_back_at = monotonic() + (BACK_WITHIN_S if state.generation else 0.0)
        self._deaths = Deaths()
        self._looked_at_files = monotonic()
        self._asked_for: tuple[Bundle, ...] = ()
        """When it was last told."""
        self._known_changes: frozenset[str] = frozenset()
        self._known_notes: frozenset[tuple[Stage, str]] = frozenset()
        self._wake = asyncio.Event()
        self.emptied = asyncio.Event()
        """Set when it was asked to stop and no replica is left."""

    async def run_forever(self) -> None:
        """Raises what a step raised when FAILED_STEPS of them failed in a row."""
        failed = 0
        while True:
            try:
                acted = await self.step()
                failed = 0
            except Superseded:
                raise
            except Exception as error:
                failed += 1
                logger.exception("step failed (%d in a row)", failed)
                if failed >= FAILED_STEPS:
                    raise
                self._decide("try again", f"a step failed: {error}")
                acted = False
            if not acted:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), self._step_interval_s)
            self._wake.clear()

    async def step(self) -> bool:
        """Looks, decides and acts once. True where it did something, so that another step may find more to do."""
        await self._check()
        self.sighting = await self._fleet.observe()
        now = self._monotonic()
        self._deaths.look(self.sighting.replicas, now)
        if self.state.stopping:
            await self._ask_for((), "asked to stop")
        else:
            await self._scale(now)
            self._roll(now)
        world = self._world(now)
        self._notice_waiting(world)
        actions = plan(world)
        for action in actions:
            await self._act(action)
        await self._notice_changed_files(now)
        if self.state.stopping and not self.sighting.replicas and not actions:
            self.emptied.set()
        return bool(actions)

    def scale(self, model: str, stage: int | None, replicas: int) -> None:
        """Raises NotFound, InvalidRequest, or Unavailable where the cluster is stopping."""
        if self.state.stopping:
            raise Unavailable("the cluster is stopping")
        self._keep(self.state.scaled(model, stage, replicas))
        which = model if stage is None else f"{model} stage {stage}"
        self._decide(f"want {replicas} replicas of {which}", "asked to scale")
        self._wake.set()

    def rollout(self, name: str, rollout: Rollout, *, even_without_room: bool = False) -> int:
        """Begins to roll out `rollout.target`, and returns its revision number. A new model comes to serve at once.

        Raises InvalidRequest where it cannot be, or Unavailable where the cluster is stopping.
        """
        if self.state.stopping:
            raise Unavailable("the cluster is stopping")
        if name not in self.state.models:
            target = rollout.target.model_copy(update={"revision": self.state.next_revision(name)})
            self._keep(_with_history(self.state.with_served(name, target)))
        else:
            nodes = self.sighting.nodes
            self._keep(begun(self.state, name, rollout, nodes, even_without_room=even_without_room))
            target = self.state.rollouts[name].target
        versions = " and ".join(map(str, target.replicas))
        self._decide(
            f"roll out revision {target.revision} of {name}: version {versions} in {target.config.stages} stages",
            rollout.why,
        )
        self._wake.set()
        return target.revision

    def rollback(self, name: str, revision: int = 0) -> int:
        """Takes back the roll-out that is on its way, or rolls out again what served before (0: the last of those).

        Returns the revision that serves, or will. Raises NotFound, or what `rollout` does.
        """
        if name in self.state.rollouts and not revision:
            target = self.state.rollouts[name].target.revision
            self._keep(taken_back(self.state, name, "asked to roll back", time.time()))
            self._decide(f"take revision {target} of {name} back", "asked to roll back")
            self._wake.set()
            return self.state.models[name].revision
        target_of = earlier(self.state, name, revision)
        why = f"asked to roll back to revision {target_of.revision}"
        return self.rollout(name, Rollout(target=target_of, why=why), even_without_room=True)

    def heard(self, report: Report) -> None:
        """Takes in what a gateway reports."""
        now = self._monotonic()
        confirmed = self.traffic.confirmed(self.state.generation, now)
        waits = self.traffic.heard(report, now)
        if waits or (not confirmed and self.traffic.confirmed(self.state.generation, now)):
            self._wake.set()

    async def _scale(self, now: float) -> None:
        for change in self.scaler.decide(self.state, self.sighting, self.traffic, now):
            served = self.state.served[change.pipeline.model, change.pipeline.revision]
            before = served.replicas[change.pipeline.version]
            changed = served.with_counts(change.pipeline.version, change.counts)
            self._keep(self.state.with_served(change.pipeline.model, changed))
            self._decide(
                f"want {_shown(change.counts)} replicas of {change.pipeline}, not {_shown(before)}", change.why
            )
        nodes = len(self.sighting.nodes)
        enough = f"there is room for every replica that is wanted on {nodes} node{'s' * (nodes != 1)}"
        await self._ask_for(self.scaler.lacking, "; ".join(self.scaler.short) or enough)

    async def _ask_for(self, bundles: tuple[Bundle, ...], why: str) -> None:
        """Asks at each step, since what runs changes what it takes to have room. Told when it is something else that is
        lacking, or twice or half as much: under a load that goes up and down a little it is never quite the same.
        """
        await self._check()
        await self._fleet.ask_for(bundles)
        if not alike(bundles, self._asked_for):
            self._asked_for = bundles
            self._decide(f"ask for nodes with room for {shown(bundles)}" if bundles else "ask for no more nodes", why)

    def _roll(self, now: float) -> None:
        notes = {**self.sighting.notes, **self._deaths.notes}
        known = {route.pipeline: 0 if route.reason else len(route.replicas) for route in self._published or ()}
        reachable = known if self._confirmed(now) else {}
        failures, wanted = self._deaths.failures, self.scaler.wanted
        evidence = Evidence(self.sighting, self.traffic, failures, notes, reachable, wanted, now)
        steps = self.rolling.steps(self.state, evidence, time.time())
        for state, what, why in steps:
            self._keep(state)
            self._decide(what, why)
        served = self.state.served
        self.traffic.keep(
            Pipeline(name, version, revision) for (name, revision), one in served.items() for version in one.replicas
        )

    async def stop(self) -> None:
        """Drains every replica, last stage last; returns when none is left. To bound it, cancel the call."""
        if not self.state.stopping:
            self._keep(self.state.model_copy(update={"stopping": True}))
            self._decide("drain every replica", "asked to stop")
            self._wake.set()
        await self.emptied.wait()

    def routes(self) -> tuple[Route, ...]:
        """What gateways should know, by the last look at the cluster."""
        return routes(self._world(self._monotonic()))

    def _world(self, now: float) -> World:
        return World(
            desired=self.state.desired,
            replicas=self.sighting.replicas,
            held_back=self._deaths.held_back(now),
            notes={**self.sighting.notes, **self._deaths.notes},
            published=self._published,
            confirmed=self._confirmed(now),
            weights=self.state.weights,
            stopping=self.state.stopping,
        )

    def _confirmed(self, now: float) -> bool:
        """Whether every gateway has the newest route table, as far as they can be waited for.

        While the cluster stops, gateways have gone before workers do: where none reports, none is waited for.
        """
        late = now - self._published_at > CONFIRM_WITHIN_S
        gone = self.state.stopping and not self.traffic.heard_of_any(now)
        heard_of_all = now >= self._all_back_at
        return late or gone or (heard_of_all and self.traffic.confirmed(self.state.generation, now))

    async def _act(self, action: Action) -> None:
        """Raises Superseded, also where another controller took over since the step began: a step may be frozen."""
        await self._check()
        match action:
            case Start(stage, why):
                replica = await self._fleet.start(stage, self.state.served[stage.model, stage.revision])
                self._decide(f"start {replica}", why)
                await self._check_started(replica)
            case Leave(replica, why):
                await self._fleet.leave(replica)
                self._decide(f"take {replica} out of the tables", why)
            case Tell(replica, next_stage, why):
                await self._fleet.tell(replica, next_stage)
                self._decide(f"tell {replica} its next stage", why)
            case Publish(table, why):
                self._publish(table)
                self._decide(f"publish route table {self.state.generation}", why)
            case Drain(replica, why):
                await self._fleet.drain(replica)
                self._decide(f"drain {replica}", why)
            case Stop(replica, why):
                await self._fleet.stop(replica)
                self._decide(f"stop {replica}", why)

    async def _check(self) -> None:
        """In a thread: a store that is out of reach keeps no gateway waiting for its tables. Raises Superseded."""
        await asyncio.to_thread(self._store.check)

    async def _check_started(self, replica: str) -> None:
        """Raises Superseded: another controller took over, which may not know of the replica. It is stopped again."""
        try:
            await self._check()
        except Superseded:
            try:
                await self._fleet.stop(replica)
            except Exception:
                logger.exception("%s was started too late and cannot be stopped; end it by hand", replica)
            raise

    def _publish(self, table: tuple[Route, ...]) -> None:
        self._keep(self.state.model_copy(update={"generation": self.state.generation + 1}))
        generation, served = self.state.generation, self.state.served
        self.feed.publish(
            route_table(generation, table, served, self.epoch, self._store.id, stopping=self.state.stopping)
        )
        self._published, self._published_at = table, self._monotonic()

    def waiting(self) -> Mapping[Stage, str]:
        """Why stages that lack replicas wait."""
        return self._world(self._monotonic()).notes

    def _notice_waiting(self, world: World) -> None:
        notes = frozenset(world.notes.items())
        for stage, why in sorted(notes - self._known_notes):
            self._decide(f"wait with {stage}", why)
        self._known_notes = notes

    async def _notice_changed_files(self, now: float) -> None:
        if now - self._looked_at_files < LOOK_AT_FILES_S:
            return
        self._looked_at_files = now
        found = await asyncio.to_thread(changes, Path(self.state.repository), self.state.models)
        for change in found:
            if change not in self._known_changes:
                self._decide("serve on as before", change)
        self._known_changes = frozenset(found)

    def _keep(self, state: State) -> None:
        self._store.write_state(state)
        self.state = state

    def _decide(self, what: str, why: str) -> None:
        logger.info("%s, because %s", what, why)
        self.decisions.append(Decision(time.time(), what, why))


def _with_history(state: State) -> State:
    """Where history lacks what serves, it begins there."""
    for name, served in state.models.items():
        if not any(entry.model == name and entry.served.revision == served.revision for entry in state.history):
            entry = HistoryEntry(unix_s=time.time(), model=name, what="served", why="it was asked for", served=served)
            state = state.remembering(entry)
    return state


def _shown(counts: tuple[int, ...]) -> str:
    return " and ".join(map(str, counts))
