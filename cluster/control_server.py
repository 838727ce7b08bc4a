"""The controller's gRPC service: translates, checks the token, and bounds who may wait. Decides nothing."""

import asyncio
import contextlib
import hmac
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
from grpc import aio

from cluster.artifact_files import ArtifactFiles
from cluster.controller import Controller
from cluster.kept_code import KeptCode
from cluster.messages import history_message, read_report, read_rollout
from cluster.repository import artifact_folder
from cluster.rolling import earlier
from cluster.status import cluster_status
from protos import control_pb2, control_pb2_grpc
from worker.channel import at
from worker.errors import NotFound, Overloaded, ShardlineError, Unauthenticated

logger = logging.getLogger(__name__)

MAX_WATCHERS = 256
MAX_CALLS = 1024
ANSWERED_WITHIN_S = 5.0
"""Whoever asked to stop, and has not read the answer for so long, is gone."""
STATUS = {code.value[0]: code for code in grpc.StatusCode}

OPTIONS = [
    ("grpc.so_reuseport", 0),  # two controllers on one port would split the gateways between them
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.max_receive_message_length", 1 << 20),
]

Context = aio.ServicerContext[Any, Any]


class ControlServer(control_pb2_grpc.ControllerServicer):
    """Serves `controller` to holders of `token`, on the event loop that both belong to.

    code: of the handlers that are served, which it keeps.
    """

    def __init__(self, controller: Controller, token: str, code: KeptCode) -> None:
        self._controller = controller
        self._expected = f"Bearer {token}".encode()
        self._files = ArtifactFiles()
        self._code = code
        self._one_rollout = asyncio.Lock()
        self._watchers = 0
        self._strangers: set[str] = set()
        self._server: aio.Server | None = None
        self._answered = asyncio.Event()

    async def start(self, host: str, port: int) -> int:
        """Listens on `port`, or where that is taken on another; returns which. Raises OSError where none is free."""
        for candidate in (port, 0) if port else (0,):
            server = aio.server(options=OPTIONS, maximum_concurrent_rpcs=MAX_CALLS)
            control_pb2_grpc.add_ControllerServicer_to_server(self, server)  # type: ignore[no-untyped-call]
            try:
                bound = server.add_insecure_port(at(host, candidate))
            except RuntimeError as error:
                logger.warning("port %d of %s is taken: %s", candidate, host, error)
                await server.stop(None)
                continue
            await server.start()
            self._server = server
            return bound
        raise OSError(f"no port of {host} is free")

    async def close(self, grace_s: float = 0.5) -> None:
        if self._server is not None:
            await self._server.stop(grace_s)

    async def until_stopped(self, answered_within_s: float = ANSWERED_WITHIN_S) -> None:
        """Returns when the cluster was stopped, and whoever asked for it has been answered, or does not wait for it."""
        await self._controller.emptied.wait()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._answered.wait(), answered_within_s)

    async def WatchRoutes(  # noqa: N802 -- the name is the protocol's
        self, request: control_pb2.WatchRoutesRequest, context: Context
    ) -> AsyncIterator[control_pb2.RouteTable]:
        await self._check(context)
        if self._watchers >= MAX_WATCHERS:
            await _abort(context, Overloaded(f"{MAX_WATCHERS} gateways watch already"))
        self._watchers += 1
        try:
            async for table in self._controller.feed.watch():
                yield table
        finally:
            self._watchers -= 1

    async def GetStatus(  # noqa: N802
        self, request: control_pb2.GetStatusRequest, context: Context
    ) -> control_pb2.ClusterStatus:
        await self._check(context)
        return cluster_status(self._controller)

    async def Scale(self, request: control_pb2.ScaleRequest, context: Context) -> control_pb2.ScaleResponse:  # noqa: N802
        await self._check(context)
        try:
            self._controller.scale(request.model, None if request.stage == -1 else request.stage, request.replicas)
        except ShardlineError as error:
            await _abort(context, error)
        return control_pb2.ScaleResponse()

    async def Report(  # noqa: N802
        self, request: control_pb2.GatewayReport, context: Context
    ) -> control_pb2.ReportResponse:
        await self._check(context)
        self._controller.heard(read_report(request))
        return control_pb2.ReportResponse()

    async def Rollout(  # noqa: N802
        self, request: control_pb2.RolloutRequest, context: Context
    ) -> control_pb2.RolloutResponse:
        await self._check(context)
        try:
            rollout = read_rollout(request)
            async with self._one_rollout:
                await asyncio.to_thread(self._code.forget_others, self._controller.state)
                await asyncio.to_thread(self._code.keep, request.model, rollout.target)
                revision = self._controller.rollout(request.model, rollout, even_without_room=request.even_without_room)
        except ShardlineError as error:
            await _abort(context, error)
        return control_pb2.RolloutResponse(revision=revision)

    async def Rollback(  # noqa: N802
        self, request: control_pb2.RollbackRequest, context: Context
    ) -> control_pb2.RollbackResponse:
        await self._check(context)
        try:
            if request.model in self._controller.state.rollouts and not request.revision:  # what still serves stays
                revision = self._controller.rollback(request.model)
            else:
                revision = await self._rolled_back(request.model, request.revision)
        except ShardlineError as error:
            await _abort(context, error)
        return control_pb2.RollbackResponse(revision=revision)

    async def _rolled_back(self, model: str, revision: int) -> int:
        """Raises what `Controller.rollback` does, HandlerCodeError where the handler's code of then is no more."""
        async with self._one_rollout:
            await asyncio.to_thread(self._code.keep, model, earlier(self._controller.state, model, revision))
            return self._controller.rollback(model, revision)

    async def GetHistory(self, request: control_pb2.GetHistoryRequest, context: Context) -> control_pb2.History:  # noqa: N802
        await self._check(context)
        return history_message(self._controller.state, request.model)

    async def FetchFile(  # noqa: N802
        self, request: control_pb2.FetchFileRequest, context: Context
    ) -> AsyncIterator[control_pb2.FileChunk]:
        await self._check(context)
        state = self._controller.state
        served = [one for (name, _), one in state.served.items() if name == request.model]
        if request.code:
            what = f"code of a handler of {request.model!r:.100} with the hash {request.code!r:.100}"
            known = any(one.code == request.code for one in served)
            folder = self._code.place(request.code)
        else:
            what = f"{request.model!r:.100}/{request.version}"
            known = any(request.version in one.replicas for one in served)
            folder = artifact_folder(Path(state.repository), request.model, request.version)
        if not known:
            await _abort(context, NotFound(f"no {what} is served"))
        if request.code and not await asyncio.to_thread(folder.is_dir):
            await _abort(
                context, NotFound(f"no {what} is kept; `shardline rollout {request.model}` takes its code as it is now")
            )
        try:
            async for piece in self._files.pieces(folder, what, request.path, request.offset):
                yield control_pb2.FileChunk(data=piece)
        except ShardlineError as error:
            await _abort(context, error)

    async def Stop(self, request: control_pb2.StopRequest, context: Context) -> control_pb2.StopResponse:  # noqa: N802
        await self._check(context)
        await self._controller.stop()
        context.add_done_callback(lambda _: self._answered.set())  # type: ignore[arg-type]
        return control_pb2.StopResponse()

    async def _check(self, context: Context) -> None:
        """Refuses who does not hold the token, and logs a stranger's address once."""
        metadata = dict(context.invocation_metadata() or ())
        offered = metadata.get("authorization", "")
        if hmac.compare_digest(offered.encode() if isinstance(offered, str) else offered, self._expected):
            return
        peer = context.peer().rsplit(":", 1)[0]
        if peer not in self._strangers and len(self._strangers) < MAX_CALLS:
            self._strangers.add(peer)
            logger.warning("refused %s, which does not hold the cluster's token", peer)
        await _abort(context, Unauthenticated("expected the cluster's token as `authorization: Bearer <token>`"))


async def _abort(context: Context, error: ShardlineError) -> None:
    await context.abort(STATUS[error.code], str(error))
