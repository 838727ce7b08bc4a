"""Workers as Ray actors: detached and named, so that they outlive a controller and its successor finds them.

An actor's name is `worker/RUN/MODEL/VERSION/STAGE/NUMBER`. RUN names one run of `shardline serve`.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
import ray.util

from cluster.fleet import Node, Sighting
from cluster.health import HealthLimits
from cluster.ray_worker import RayWorker
from cluster.repository import artifact_folder
from cluster.room import Room, why_pending
from cluster.state import State
from cluster.world import Phase, Stage
from worker.actor import STAGE_LINK, WorkerActor, WorkerSpec

logger = logging.getLogger(__name__)

NAMESPACE = "shardline"
PREFIX = "worker"
LOOK_S = 0.2
"""How long one look waits for answers; what comes later is seen by the next look."""
NODES_EVERY_S = 2.0
ROOM_PATIENCE_S = 10.0
"""A replica without a process for this long may be waiting for room."""


class RayFleet:
    """The workers of the run that `state` describes. Belongs to one event loop of a process connected to Ray."""

    def __init__(self, state: State, *, limits: HealthLimits | None = None, namespace: str = NAMESPACE) -> None:
        self._state = state
        self._limits = limits or HealthLimits()
        self._namespace = namespace
        self._workers: dict[str, RayWorker] = {}
        self._adopted = False
        self._nodes: tuple[Node, ...] = ()
        self._free_cpus = 0.0
        self._nodes_at = float("-inf")

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
        replicas = tuple(worker.seen(now, self._limits) for worker in workers)
        return Sighting(
            replicas,
            figures={worker.id: worker.figures() for worker in workers},
            notes={
                replica.stage: self._why_pending(replica.stage)
                for replica in replicas
                if replica.phase is Phase.PENDING and now - self._workers[replica.id].asked_at > ROOM_PATIENCE_S
            },
            nodes=self._nodes,
        )

    async def start(self, stage: Stage) -> str:
        config = self._state.models[stage.model].config
        replica = f"{stage.model}/{stage.version}/{stage.index}/{secrets.token_hex(3)}"
        spec = WorkerSpec(
            replica=replica,
            artifact=str(artifact_folder(Path(self._state.repository), stage.model, stage.version)),
            stage=stage.index,
            stages=config.stages,
            token=self._state.token,
            device="cuda:0" if config.device == "cuda" else config.device,
            runtime=config.runtime,
            handler=config.handler,
            threads=config.threads,
            host=self._state.host,
            batching=config.batching.as_batching(),
            max_queue_rows=config.limits.max_queue_rows,
            link=STAGE_LINK,
        )
        actor: Any = ray.remote(WorkerActor).options(
            name=self._actor_name(replica),
            namespace=self._namespace,
            lifetime="detached",
            max_restarts=0,
            num_cpus=config.cpus,
            num_gpus=1 if config.device == "cuda" else 0,
        )
        self._workers[replica] = RayWorker(replica, stage, await asyncio.to_thread(actor.remote, spec), adopted=False)
        return replica

    async def leave(self, replica: str) -> None:
        self._workers[replica].leaving = True

    async def tell(self, replica: str, next_stage: Mapping[str, str]) -> None:
        self._workers[replica].tell(next_stage)

    async def drain(self, replica: str) -> None:
        worker = self._workers[replica]
        worker.drain(self._state.models[worker.stage.model].config.drain_s)

    async def stop(self, replica: str) -> None:
        worker = self._workers.pop(replica, None)
        if worker is not None:
            await worker.close()
            await asyncio.to_thread(ray.kill, worker.handle, no_restart=True)

    async def close(self) -> None:
        workers, self._workers = list(self._workers.values()), {}
        await asyncio.gather(*(worker.close() for worker in workers))

    def _actor_name(self, replica: str) -> str:
        return f"{PREFIX}/{self._state.run}/{replica}"

    async def _adopt(self) -> None:
        """Finds this run's living workers by their names; ends those that an earlier run left behind."""
        for actor in await asyncio.to_thread(ray.util.list_named_actors, all_namespaces=True):
            prefix, _, rest = actor["name"].partition("/")
            run, _, replica = rest.partition("/")
            if actor["namespace"] != self._namespace or prefix != PREFIX:
                continue
            try:
                handle: Any = await asyncio.to_thread(ray.get_actor, actor["name"], self._namespace)
            except ValueError:
                continue  # it died between the two calls
            model, version, stage, _ = replica.rsplit("/", 3)
            if run != self._state.run or model not in self._state.models:
                logger.warning("ending %s, which an earlier run left behind", actor["name"])
                await asyncio.to_thread(ray.kill, handle, no_restart=True)
            else:
                logger.info("found %s alive", replica)
                place = Stage(model, int(version), int(stage))
                self._workers[replica] = RayWorker(replica, place, handle, adopted=True)

    async def _look_at_nodes(self) -> None:
        nodes = await asyncio.to_thread(ray.nodes)
        free = await asyncio.to_thread(ray.available_resources)
        self._free_cpus = float(free.get("CPU", 0.0))
        self._nodes = tuple(
            Node(
                node["NodeID"],
                node["NodeManagerAddress"],
                {kind: float(amount) for kind, amount in node["Resources"].items() if ":" not in kind},
            )
            for node in nodes
            if node["Alive"]
        )

    def _why_pending(self, stage: Stage) -> str:
        config = self._state.models[stage.model].config
        room = Room(
            cpus=sum(node.resources.get("CPU", 0.0) for node in self._nodes),
            free_cpus=self._free_cpus,
            gpus=sum(node.resources.get("GPU", 0.0) for node in self._nodes),
        )
        asked = sum(self._state.models[worker.stage.model].config.cpus for worker in self._workers.values())
        return why_pending(config.cpus, config.device == "cuda", asked, room)
