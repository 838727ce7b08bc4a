"""Keeps the cluster as it is wanted: observe → plan → act, one step a call. Knows neither Ray nor gRPC.

What is wanted is stored before it is acted upon. So a controller that dies and comes back goes on where it was: it
finds the living workers again and restarts none of them.
"""

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cluster.backoff import STEADY_AFTER_S, Failures
from cluster.fleet import Fleet, Sighting
from cluster.plan import Action, Drain, Leave, Publish, Start, Stop, Tell, plan, routes
from cluster.repository import changes
from cluster.route_feed import RouteFeed
from cluster.route_table import route_table
from cluster.state import State, StateDir
from cluster.world import Phase, Replica, Route, Stage, World
from worker.errors import Unavailable

logger = logging.getLogger(__name__)

KEPT_DECISIONS = 100
STEP_INTERVAL_S = 0.5
"""Between steps that find nothing to do."""
LOOK_AT_FILES_S = 2.0
FAILED_STEPS = 20
"""So many in a row, and the controller gives up: Ray starts it anew."""


@dataclass(frozen=True, slots=True)
class Decision:
    """what: the action. why: what was seen."""

    unix_s: float
    what: str
    why: str


class Controller:
    """Belongs to one event loop."""

    def __init__(
        self,
        fleet: Fleet,
        state_dir: StateDir,
        state: State,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        step_interval_s: float = STEP_INTERVAL_S,
    ) -> None:
        self._fleet = fleet
        self._state_dir = state_dir
        self.state = state
        self._monotonic = monotonic
        self._step_interval_s = step_interval_s
        self.feed = RouteFeed()
        self.sighting = Sighting(())
        self.decisions: deque[Decision] = deque(maxlen=KEPT_DECISIONS)
        self._published: tuple[Route, ...] | None = None
        self._failures: dict[Stage, Failures] = {}
        self._ready_since: dict[str, float] = {}
        self._looked_at_files = monotonic()
        self._known_changes: frozenset[str] = frozenset()
        self._known_notes: frozenset[tuple[Stage, str]] = frozenset()
        self._wake = asyncio.Event()
        self._emptied = asyncio.Event()

    async def run_forever(self) -> None:
        """Raises what a step raised when FAILED_STEPS of them failed in a row."""
        failed = 0
        while True:
            try:
                acted = await self.step()
                failed = 0
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
        self.sighting = await self._fleet.observe()
        now = self._monotonic()
        self._count_failures(self.sighting.replicas, now)
        world = self._world(now)
        self._notice_waiting(world)
        actions = plan(world)
        for action in actions:
            await self._act(action)
        await self._notice_changed_files(now)
        if self.state.stopping and not self.sighting.replicas and not actions:
            self._emptied.set()
        return bool(actions)

    def scale(self, model: str, stage: int | None, replicas: int) -> None:
        """Raises NotFound, InvalidRequest, or Unavailable where the cluster is stopping."""
        if self.state.stopping:
            raise Unavailable("the cluster is stopping")
        self._store(self.state.scaled(model, stage, replicas))
        which = model if stage is None else f"{model} stage {stage}"
        self._decide(f"want {replicas} replicas of {which}", "asked to scale")
        self._wake.set()

    async def stop(self) -> None:
        """Drains every replica, last stage last; returns when none is left. To bound it, cancel the call."""
        if not self.state.stopping:
            self._store(self.state.model_copy(update={"stopping": True}))
            self._decide("drain every replica", "asked to stop")
            self._wake.set()
        await self._emptied.wait()

    def routes(self) -> tuple[Route, ...]:
        """What gateways should know, by the last look at the cluster."""
        return routes(self._world(self._monotonic()))

    def _world(self, now: float) -> World:
        dying = {stage: failures.note for stage, failures in self._failures.items() if failures.note}
        return World(
            desired=self.state.desired,
            replicas=self.sighting.replicas,
            held_back={stage: why for stage, why in dying.items() if self._failures[stage].held_back(now)},
            notes={**self.sighting.notes, **dying},
            published=self._published,
        )

    def _count_failures(self, replicas: tuple[Replica, ...], now: float) -> None:
        for replica in replicas:
            if replica.phase is Phase.DEAD and not replica.leaving:
                self._failures[replica.stage] = self._failures.get(replica.stage, Failures()).after(replica.why, now)
            elif replica.takes_work:
                since = self._ready_since.setdefault(replica.id, now)
                if now - since >= STEADY_AFTER_S:
                    self._failures.pop(replica.stage, None)
        self._ready_since = {
            replica.id: self._ready_since[replica.id] for replica in replicas if replica.id in self._ready_since
        }

    async def _act(self, action: Action) -> None:
        match action:
            case Start(stage, why):
                self._decide(f"start {await self._fleet.start(stage)}", why)
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

    def _publish(self, table: tuple[Route, ...]) -> None:
        self._store(self.state.model_copy(update={"generation": self.state.generation + 1}))
        self.feed.publish(route_table(self.state.generation, table, self.state.models))
        self._published = table

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

    def _store(self, state: State) -> None:
        self._state_dir.write_state(state)
        self.state = state

    def _decide(self, what: str, why: str) -> None:
        logger.info("%s, because %s", what, why)
        self.decisions.append(Decision(time.time(), what, why))
