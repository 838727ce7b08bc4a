"""The Ray actor around a worker: loads a stage, warms it up, listens, and does what the controller says."""

import asyncio
import importlib
import logging
import os
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import ray.util

from worker.batcher import Batching
from worker.errors import Unavailable
from worker.fetch import ArtifactSource, local_artifact, local_code
from worker.handler_code import importable
from worker.link import STAGE_LINK, Link, LinkLimits
from worker.niceness import stand_behind
from worker.nouns import WorkerStats
from worker.stream_server import StreamServer

if TYPE_CHECKING:
    # What brings torch is imported when a worker starts: the controller names this class, and does without torch.
    from worker.handler import Handler
    from worker.shard import Shard
    from worker.worker import Worker

END_WITHIN_S: Final = 0.2
TELL_WITHIN_S: Final = 2.0
"""Between the end of computing and the process's: for so long, what waits is owed, and sent elsewhere then; after it,
for so long at most, what is answered is written, since a busy machine may not have told yet what failed."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """All that a worker is told at its start.

    artifact: folder of the model version; where the worker's node does not have it, it is fetched from `source`.
    handler: "module:Class" of the first stage; None: clients send the program's tensors.
    handler_code: folder that its module is imported from, in the model's; None: it is installed.
    threads: intra-op threads of the shard.
    host: address to listen on; None: the node's own address.
    """

    replica: str
    artifact: str
    stage: int
    stages: int
    token: str = field(repr=False)
    device: str = "cpu"
    runtime: Literal["fastest", "eager"] = "fastest"
    handler: str | None = None
    handler_code: str | None = None
    threads: int = 1
    host: str | None = "127.0.0.1"
    batching: Batching = field(default_factory=Batching)
    max_queue_rows: int = 256
    sheds: bool = True
    link: LinkLimits = STAGE_LINK
    source: ArtifactSource | None = None


class WorkerActor:
    """Made with `ray.remote(WorkerActor).options(...).remote(spec)`; every method may be called again."""

    def __init__(self, spec: WorkerSpec) -> None:
        self._spec = spec
        self._starting: asyncio.Task[str] | None = None
        self._running: asyncio.Task[None] | None = None
        self._ending: asyncio.Task[None] | None = None
        self._holds = ExitStack()
        """Kept open: what a living worker has loaded stays on the node, and its handler's code can be imported."""
        self._shard: Shard | None = None
        self._worker: Worker | None = None
        self._server: StreamServer | None = None
        self._link = Link(spec.token, spec.link) if spec.stage + 1 < spec.stages else None
        self._address = ""
        self._draining = False
        self._epoch = 0

    async def start(self) -> str:
        """Loads, warms up and listens; returns host:port. Raises `ArtifactError` where the artifact cannot be used."""
        if self._starting is None:
            self._starting = asyncio.create_task(self._start())
        return await asyncio.shield(self._starting)

    async def route(self, replicas: dict[str, str], epoch: int = 0) -> None:
        """From now on these are the next stage's replicas (id to host:port).

        Raises `Unavailable` where a controller of a higher `epoch` has spoken.
        """
        self._heed(epoch)
        if self._link is not None:
            self._link.route(replicas)

    async def stats(self) -> WorkerStats:
        """Raises `Unavailable` where the worker has not started or has stopped computing."""
        if self._worker is None or self._shard is None or self._running is None:
            raise Unavailable(f"{self._spec.replica} has not started")
        if self._running.done():
            raise Unavailable(f"{self._spec.replica} no longer computes: {self._running}")
        from worker.worker import resident_bytes  # noqa: PLC0415

        load = self._worker.load()
        batcher, counters = self._worker.batcher, self._worker.counters
        return WorkerStats(
            replica=self._spec.replica,
            address=self._address,
            pid=os.getpid(),
            node=ray.get_runtime_context().get_node_id(),
            runtime=self._shard.runtime,
            note=self._shard.note,
            queued_rows=load.queued_rows,
            seconds_per_row=load.seconds_per_row,
            computed_rows=counters.computed_rows,
            computed_batches=counters.computed_batches,
            computing_s=counters.computing_s,
            dropped_expired=batcher.dropped_expired,
            dropped_cancelled=batcher.dropped_cancelled,
            refused=batcher.refused,
            failed=counters.failed,
            resident_bytes=resident_bytes(),
            draining=self._draining,
        )

    async def drain(self, timeout_s: float, epoch: int = 0) -> bool:
        """Takes nothing new and answers what it owes; False where something was left after `timeout_s` seconds."""
        self._heed(epoch)
        self._draining = True
        if self._server is None:
            return True
        return await self._server.drain(timeout_s)

    def _stopped(self, running: asyncio.Task[None]) -> None:
        """What ends the computing ends the process: callers send what it owes to another replica at once."""
        if not running.cancelled():
            logger.critical("%s computes no more and ends: %s", self._spec.replica, running.exception())
            self._ending = asyncio.create_task(self._end())

    async def _end(self) -> None:
        if self._server is not None:
            await self._server.drain(END_WITHIN_S)
            await self._server.flush(TELL_WITHIN_S)
        os._exit(1)

    def _heed(self, epoch: int) -> None:
        if epoch < self._epoch:
            raise Unavailable(f"controller {self._epoch} has taken over from controller {epoch}")
        self._epoch = epoch

    async def _start(self) -> str:
        spec = self._spec
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, importlib.import_module, "worker.worker")
        from worker.artifact import load_artifact  # noqa: PLC0415
        from worker.shard import load_shard  # noqa: PLC0415
        from worker.warm_up import warm_up_shapes  # noqa: PLC0415
        from worker.worker import Worker  # noqa: PLC0415

        folder = Path(spec.artifact)
        if spec.source is not None and spec.source.address:
            local = await loop.run_in_executor(None, local_artifact, folder, spec.source, spec.token)
            self._holds.push(local.hold)
            artifact = local.artifact
        else:
            artifact = await loop.run_in_executor(None, load_artifact, folder)
        handler = await loop.run_in_executor(None, self._handler, artifact.handler_assets)
        shard = await loop.run_in_executor(
            None,
            lambda: load_shard(
                artifact, stage=spec.stage, stages=spec.stages, device=spec.device, runtime=spec.runtime
            ),
        )
        first = spec.stage == 0
        worker = Worker(
            shard,
            outputs=artifact.manifest.signature.outputs,
            link=self._link,
            handler=handler,
            batching=spec.batching if first else replace(spec.batching, max_wait_s=0.0, max_padding=0.0),
            # What comes to a later stage was computed, and is bounded by what each caller may have in flight.
            max_queue_rows=spec.max_queue_rows if first else None,
            threads=spec.threads,
            sheds=spec.sheds,
        )
        await worker.warm_up(warm_up_shapes(shard.signature, spec.batching.max_rows))
        stand_behind()
        self._running = asyncio.create_task(worker.run_forever())
        self._running.add_done_callback(self._stopped)
        server = StreamServer(spec.token, worker.serve, worker.load)
        host = spec.host or str(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]
        self._address = await server.start(host)
        self._shard, self._worker, self._server = shard, worker, server
        return self._address

    def _handler(self, assets: Path) -> "Handler | None":
        """Blocks."""
        from worker.handler import load_handler  # noqa: PLC0415

        spec = self._spec
        if not spec.handler or spec.stage > 0:
            return None
        if spec.handler_code is None:
            return load_handler(spec.handler, assets)
        source = spec.source if spec.source is not None and spec.source.address else None
        code = local_code(Path(spec.artifact).parent, spec.handler_code, source, spec.token)
        self._holds.push(code.hold)
        self._holds.enter_context(importable(code.folder, spec.handler))
        handler = load_handler(spec.handler, assets)
        code.refuse_changed()
        return handler
