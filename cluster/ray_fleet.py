"""Workers as Ray actors: detached and named, so that they outlive a controller and its successor finds them.

An actor's name is `worker/RUN/MODEL/VERSION/STAGE/rREVISION-NUMBER`, and so is that of the placement group that holds
its resources. RUN names one run of `shardline serve`.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
import ray._private.state
import ray.util
from ray.autoscaler.sdk import request_resources
from ray.util.placement_group import PlacementGroup, placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.fleet import Bundle, Node, Sighting
from cluster.health import HealthLimits
from cluster.placement import Placed, choose_node, seat, why_no_room, why_nowhere
from cluster.ray_found import PREFIX, Found, found_workers, free_left_groups
from cluster.ray_worker import RayWorker
from cluster.repository import artifact_folder
from cluster.room import Room, why_pending
from cluster.state import ServedModel, State
from cluster.world import Phase, Stage
from worker.actor import WorkerActor, WorkerSpec
from worker.fetch import ArtifactSource
from worker.link import STAGE_LINK
from worker.per_stage import MEMORY, StageSettings

logger = logging.getLogger(__name__)

NAMESPACE = "shardline"
HEAD = "node:__internal_head__"
"""A resource that Ray gives to the head node alone."""
LOOK_S = 0.2
"""How long one look waits for answers; what comes later is seen by the next look."""
NODES_EVERY_S = 2.0
SHUN_S = 300.0
"""A node where a stage's replica failed to start is the last choice for the next ones, for so long."""
SILENT_S = 120.0
"""So is one on which every worker went silent."""
ANSWERS_WITHIN_S = 2.0
ROOM_PATIENCE_S = 10.0
"""A replica without a process for this long may be waiting for room."""


class RayFleet:
    """The workers of the run that `state` describes. Belongs to one event loop of a process connected to Ray.

    epoch: of the controller; workers refuse what a controller of a lower one says. control_address: where workers on
    other nodes fetch artifacts; empty: they need the folder of models.
    """

    def __init__(
        self, state: State, *, epoch: int = 0, limits: HealthLimits | None = None, namespace: str = NAMESPACE
    ) -> None:
        self._state = state
        self._epoch = epoch
        self._limits = limits or HealthLimits()
        self._namespace = namespace
        self.control_address = ""
        self._workers: dict[str, RayWorker] = {}
        self._adopted = False
        self._nodes: tuple[Node, ...] = ()
        self._free_cpus = 0.0
        self._nodes_at = float("-inf")
        self._asked_for: list[Bundle] | None = None
        self._failed_starts: dict[tuple[Stage, str], float] = {}
        self._went_silent: dict[str, float] = {}

    async def observe(self) -> Sighting:
        if not self._adopted:
            await self._adopt()
            self._adopted = True
        for worker in self._workers.values():
            worker.ping()
        questions = [task for worker in self._workers.values() for task in worker.questions]
        if questions:
            await asyncio.wait(questions, timeout=LOOK_S)
        now = time.monotonic()
        if now - self._nodes_at >= NODES_EVERY_S:
            await self._look_at_nodes()
            self._nodes_at = now
        workers = self._workers.values()
        drained = {node.id for node in self._nodes if node.drained}
        heads = {node.id for node in self._nodes if node.head}
        placed = self._placed()
        replicas = tuple(
            replace(
                worker.seen(now, self._limits),
                displaced=worker.node in drained,
                seat=seat(self._as_placed(worker), placed, heads),
            )
            for worker in workers
        )
        return Sighting(
            replicas,
            figures={worker.id: worker.figures() for worker in workers},
            notes={
                replica.stage: self._why_pending(self._workers[replica.id])
                for replica in replicas
                if replica.phase is Phase.PENDING and now - self._workers[replica.id].asked_at > ROOM_PATIENCE_S
            },
            nodes=tuple(self._with_what_is_taken(node) for node in self._nodes),
        )

    async def start(self, stage: Stage, served: ServedModel) -> str:
        replica = f"{stage.model}/{stage.version}/{stage.index}/r{stage.revision}-{secrets.token_hex(3)}"
        config = served.config
        settings = config.stage(stage.index)
        folder = artifact_folder(Path(self._state.repository), stage.model, stage.version)
        spec = WorkerSpec(
            replica=replica,
            artifact=str(folder),
            source=self._source(stage, served),
            stage=stage.index,
            stages=config.stages,
            token=self._state.token,
            device="cuda:0" if settings.device == "cuda" else settings.device,
            runtime=config.runtime,
            handler=config.handler,
            handler_code=config.handler_code,
            threads=settings.threads,
            host=self._state.host,
            batching=config.batching.as_batching(),
            max_queue_rows=config.limits.max_queue_rows,
            sheds=config.limits.admission == "predicted",
            link=replace(STAGE_LINK, hedge_share=config.limits.hedge_share),
        )
        node = choose_node(stage, settings, self._nodes, self._placed(), self._shunned(stage))
        name = self._actor_name(replica)
        group = await asyncio.to_thread(
            placement_group,
            [settings.bundle],
            strategy="STRICT_PACK",
            name=name,
            lifetime="detached",
            _soft_target_node_id=node,
            bundle_label_selector=[dict(settings.labels)] if settings.labels else None,
        )
        try:
            handle = await self._actor(name, spec, settings, group)
        except BaseException:
            await asyncio.to_thread(ray.util.remove_placement_group, group)
            raise
        worker = RayWorker(replica, stage, handle, config, epoch=self._epoch, adopted=False)
        worker.group, worker.aimed_at = group, node or ""
        self._workers[replica] = worker
        return replica

    async def _actor(self, name: str, spec: WorkerSpec, settings: StageSettings, group: PlacementGroup) -> Any:
        actor: Any = ray.remote(WorkerActor).options(
            name=name,
            namespace=self._namespace,
            lifetime="detached",
            max_restarts=0,
            num_cpus=settings.cpus,
            num_gpus=settings.bundle.get("GPU", 0),
            memory=settings.bundle.get(MEMORY) or None,
            resources=dict(settings.resources) or None,
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=0),
        )
        return await asyncio.to_thread(actor.remote, spec)

    async def leave(self, replica: str) -> None:
        self._workers[replica].leaving = True

    async def tell(self, replica: str, next_stage: Mapping[str, str]) -> None:
        self._workers[replica].tell(next_stage)

    async def drain(self, replica: str) -> None:
        worker = self._workers[replica]
        worker.drain(worker.config.drain_s)

    async def stop(self, replica: str) -> None:
        """Where Ray fails, the worker stays known, so that it can be stopped again."""
        worker = self._workers.get(replica)
        if worker is not None:
            now = time.monotonic()
            if worker.failed_to_start and worker.node:
                self._failed_starts[worker.stage, worker.node] = now
            if worker.address and worker.silent_s(now) >= self._limits.frozen_after_s:
                self._went_silent[worker.node] = now
            await asyncio.to_thread(ray.kill, worker.handle, no_restart=True)
            if worker.group is not None:
                await asyncio.to_thread(ray.util.remove_placement_group, worker.group)
            self._workers.pop(replica, None)
            await worker.close()

    async def ask_for(self, bundles: Sequence[Bundle]) -> None:
        """Ray's own autoscaler adds nodes until these fit beside what it was told that runs.

        Ray remembers it, also of a controller that is gone: the first call always replaces what was asked for.
        """
        asked = [*map(_bundle, self._workers.values()), *bundles] if bundles else []
        if asked != self._asked_for:
            await asyncio.to_thread(
                request_resources,
                bundles=[dict(one.resources) for one in asked],
                bundle_label_selectors=[dict(one.labels) for one in asked],
            )
            self._asked_for = asked

    async def close(self) -> None:
        workers, self._workers = list(self._workers.values()), {}
        await asyncio.gather(*(worker.close() for worker in workers))

    def _source(self, stage: Stage, served: ServedModel) -> ArtifactSource | None:
        manifest = served.manifests.get(stage.version, "")
        if not (self.control_address and manifest):
            return None
        return ArtifactSource(self.control_address, stage.model, stage.version, manifest, code=served.code)

    def _actor_name(self, replica: str) -> str:
        return f"{PREFIX}/{self._state.run}/{replica}"

    async def _adopt(self) -> None:
        """Takes over this run's living workers; ends those that an earlier run left behind.

        Workers of a revision that serves no longer are found too: they answer what they owe, and `plan` drains them.
        All or none: where Ray fails meanwhile, none is taken over, nothing of theirs is ended, and the next look tries
        again.
        """
        adopted: list[tuple[Found, Stage, ServedModel]] = []
        for found in await asyncio.to_thread(found_workers, self._namespace):
            stage = _stage_of(found.replica)
            served = self._state.known(stage.model, stage.revision)
            if found.run == self._state.run and served is not None:
                adopted.append((found, stage, served))
            else:
                logger.warning("ending %s, which an earlier run left behind", found.name)
                await asyncio.to_thread(ray.kill, found.handle, no_restart=True)
        await asyncio.to_thread(free_left_groups, {found.name for found, _, _ in adopted})
        for found, stage, served in adopted:
            logger.info("found %s %s", found.replica, "alive" if found.lives else "on its way")
            worker = RayWorker(
                found.replica, stage, found.handle, served.config, epoch=self._epoch, adopted=found.lives
            )
            worker.group, worker.aimed_at = found.group, found.node
            self._workers[found.replica] = worker

    async def _look_at_nodes(self) -> None:
        nodes = await asyncio.to_thread(ray.nodes)
        drained = await asyncio.to_thread(ray._private.state.state.get_draining_nodes)
        free = await asyncio.to_thread(ray.available_resources)
        self._free_cpus = float(free.get("CPU", 0.0))
        self._nodes = tuple(
            Node(
                node["NodeID"],
                node["NodeManagerAddress"],
                {
                    kind: float(amount)
                    for kind, amount in node["Resources"].items()
                    if ":" not in kind and "_group_" not in kind
                },
                {name: value for name, value in (node.get("Labels") or {}).items() if not name.startswith("ray.io/")},
                drained=node["NodeID"] in drained,
                head=HEAD in node["Resources"],
            )
            for node in nodes
            if node["Alive"]
        )

    def _shunned(self, stage: Stage) -> set[str]:
        """Nodes on which a replica of `stage` lately failed to start: a full disk, say. And those that went silent:
        Ray itself takes a node that is cut off for dead after a minute only.
        """
        now = time.monotonic()
        answering = {one.node for one in self._workers.values() if one.stats and one.silent_s(now) < ANSWERS_WITHIN_S}
        silent = {node for node, when in self._went_silent.items() if now - when < SILENT_S} - answering
        self._failed_starts = {at: when for at, when in self._failed_starts.items() if now - when < SHUN_S}
        return silent | {node for failed, node in self._failed_starts if failed == stage}

    def _placed(self, without: RayWorker | None = None) -> list[Placed]:
        return [self._as_placed(worker) for worker in self._workers.values() if worker is not without]

    def _as_placed(self, worker: RayWorker) -> Placed:
        return Placed(worker.stage, worker.node, worker.config.stage(worker.stage.index).bundle)

    def _with_what_is_taken(self, node: Node) -> Node:
        here = [one for one in self._placed() if one.node == node.id]
        kinds = {kind for one in here for kind in one.bundle}
        taken = {kind: sum(one.bundle.get(kind, 0.0) for one in here) for kind in kinds}
        return replace(node, taken=taken, replicas=len(here))

    def _why_pending(self, worker: RayWorker) -> str:
        settings = worker.config.stage(worker.stage.index)
        nowhere = why_nowhere(settings, self._nodes)
        if nowhere:
            return nowhere
        room = Room(
            cpus=sum(node.resources.get("CPU", 0.0) for node in self._nodes),
            free_cpus=self._free_cpus,
            gpus=sum(node.resources.get("GPU", 0.0) for node in self._nodes),
        )
        asked = sum(one.bundle["CPU"] for one in self._placed())
        cpus = why_pending(settings.cpus, settings.device == "cuda", asked, room)
        others = self._placed(without=worker)
        if not cpus.startswith("no room") and choose_node(worker.stage, settings, self._nodes, others) is None:
            return why_no_room(settings)
        return cpus


def _bundle(worker: RayWorker) -> Bundle:
    settings = worker.config.stage(worker.stage.index)
    return Bundle(settings.bundle, settings.labels)


def _stage_of(replica: str) -> Stage:
    model, version, stage, number = replica.rsplit("/", 3)
    return Stage(model, int(version), int(stage), int(number.partition("-")[0].removeprefix("r")))
