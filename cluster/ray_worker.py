"""One worker as the controller holds it: its Ray handle, what it was asked, and what was heard of it."""

import asyncio
import contextlib
import re
import time
from collections.abc import Awaitable, Mapping
from typing import Any

from ray.exceptions import ActorUnavailableError, RayActorError, RayTaskError
from ray.util.placement_group import PlacementGroup

from cluster.health import DRAIN_MARGIN_S, HealthLimits, Heard, judge
from cluster.world import Replica, Stage
from worker.model_yaml import ModelYaml
from worker.nouns import WorkerStats

COLOURS = re.compile(r"\x1b\[[0-9;]*m")
TELL_WITHIN_S = 5.0


class RayWorker:
    """`handle` is the Ray actor handle of a `WorkerActor`, `group` the placement group that holds its resources.

    epoch: of the controller that speaks to it. adopted: its process lived already when it was found by its name; one
    that Ray has yet to start is as new, whoever asked for it. At most one question of each kind is open at a time.
    Belongs to one event loop.
    """

    def __init__(
        self, replica: str, stage: Stage, handle: Any, config: ModelYaml, *, epoch: int, adopted: bool
    ) -> None:
        self.id = replica
        self.stage = stage
        self.handle = handle
        self.config = config
        self.group: PlacementGroup | None = None
        self.aimed_at = ""
        self._epoch = epoch
        self.address = ""
        self.stats: WorkerStats | None = None
        self.asked_at = time.monotonic()
        self.leaving = False
        self._adopted = adopted
        self._told: Mapping[str, str] | None = None if adopted else {}
        self._asked: Mapping[str, str] | None = self._told
        self._first_answer: float | None = None
        self._ping_at: float | None = None
        self._drained = False
        self._failed = ""
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._own("start", self._start())

    @property
    def node(self) -> str:
        """Ray's id of its node, or of the one that it was meant for; empty: not known."""
        return self.stats.node if self.stats else self.aimed_at

    @property
    def failed_to_start(self) -> bool:
        return bool(self._failed) and not self.address

    def silent_s(self, now: float) -> float:
        """For how long it has owed an answer."""
        return now - self._ping_at if self._ping_at is not None else 0.0

    @property
    def questions(self) -> list[asyncio.Task[None]]:
        """What was asked and is answered within moments by a worker that is well."""
        return [task for kind, task in self._tasks.items() if kind in ("ping", "tell")]

    def ping(self) -> None:
        if "ping" not in self._tasks and not self._failed:
            self._ping_at = self._ping_at or time.monotonic()
            self._own("ping", self._ping())

    def tell(self, next_stage: Mapping[str, str]) -> None:
        self._asked = next_stage
        self._own("tell", self._tell(next_stage))

    def drain(self, bound_s: float) -> None:
        self.leaving = True
        if "drain" not in self._tasks and not self._drained:
            self._own("drain", self._drain(bound_s))

    def seen(self, now: float, limits: HealthLimits) -> Replica:
        heard = Heard(
            asked_at=self.asked_at,
            adopted=self._adopted,
            first_answer=self._first_answer,
            unanswered_since=self._ping_at,
            ready=bool(self.address),
            draining="drain" in self._tasks,
            drained=self._drained,
            failed=self._failed,
        )
        phase, why = judge(heard, now, limits)
        queued = self.stats.queued_rows if self.stats else 0
        return Replica(self.id, self.stage, phase, self.address, self._told, self._asked, self.leaving, queued, why)

    def figures(self) -> WorkerStats:
        return self.stats or WorkerStats()

    async def close(self) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _own(self, kind: str, work: Awaitable[None]) -> None:
        """Runs `work` as the only task of its kind; an older one is cancelled."""
        if kind in self._tasks:
            self._tasks[kind].cancel()
        task = asyncio.ensure_future(self._guarded(work))
        self._tasks[kind] = task
        task.add_done_callback(lambda done: self._tasks.pop(kind) if self._tasks.get(kind) is done else None)

    async def _guarded(self, work: Awaitable[None]) -> None:
        try:
            await work
        except ActorUnavailableError:
            return  # Ray lost sight of it for now; a ping that stays unanswered decides
        except RayActorError as error:
            self._failed = _telling_line(error)
        except RayTaskError as error:
            self._failed = _telling_line(error.cause or error)

    async def _start(self) -> None:
        self.address = await self.handle.start.remote()
        self._first_answer = self._first_answer or time.monotonic()

    async def _ping(self) -> None:
        try:
            stats: WorkerStats = await self.handle.stats.remote()
        except RayTaskError:
            if self.address:
                raise  # it was ready, and no longer computes
            if "start" not in self._tasks:
                self._own("start", self._start())  # Ray lost sight of it meanwhile, and what came of it is not known
        else:
            self.stats = stats
            self.address = stats.address
            self.leaving = self.leaving or stats.draining
        now = time.monotonic()
        self._first_answer = self._first_answer or now
        self._ping_at = None

    async def _tell(self, next_stage: Mapping[str, str]) -> None:
        try:
            await asyncio.wait_for(self.handle.route.remote(dict(next_stage), self._epoch), TELL_WITHIN_S)
        except (TimeoutError, ActorUnavailableError):
            if self._asked is next_stage:
                self._asked = None
        else:
            self._told = next_stage

    async def _drain(self, bound_s: float) -> None:
        with contextlib.suppress(TimeoutError):  # what it still owes, its callers send to other replicas
            await asyncio.wait_for(self.handle.drain.remote(bound_s, self._epoch), bound_s + DRAIN_MARGIN_S)
        self._drained = True


def _telling_line(error: BaseException) -> str:
    """What to tell of an error that Ray wraps in many lines: the line that says why, without colours."""
    lines = [line.strip() for line in COLOURS.sub("", str(error)).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    if "creation task" in lines[0]:
        return lines[-1][:300]
    why = next((line for line in lines if line.startswith("The actor is dead because")), lines[0])
    return f"{type(error).__name__}: {why[:300]}"
