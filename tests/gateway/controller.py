"""The controller's side of `WatchRoutes`: pushes the tables it is given, to holders of the token."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from gateway.watch import METHOD, REPORT
from protos import control_pb2 as pb
from tests.gateway.backend import TOKEN


class FakeController:
    """`push` sends a table to every watcher, and to those that come later. `on_report` gets what gateways report.

    reports: the last one of each gateway process, by the name that it gives itself.
    """

    def __init__(self, token: str = TOKEN) -> None:
        self._token = token
        self._table = pb.RouteTable()
        self.on_report: Callable[[pb.GatewayReport], None] = lambda _: None
        self.reports: dict[str, pb.GatewayReport] = {}
        self._pushed = asyncio.Event()
        self._server: grpc.aio.Server | None = None
        self.address = ""
        self.refused = 0
        self._call = asyncio.Event()

    def push(self, table: pb.RouteTable) -> None:
        self._table = table
        self._pushed.set()
        self._pushed = asyncio.Event()

    async def start(self, port: int = 0) -> None:
        service, method = METHOD[1:].split("/")
        handler: grpc.RpcMethodHandler[pb.WatchRoutesRequest, pb.RouteTable] = grpc.unary_stream_rpc_method_handler(
            self._watch_routes, pb.WatchRoutesRequest.FromString, pb.RouteTable.SerializeToString
        )
        self._server = grpc.aio.server()
        reports: grpc.RpcMethodHandler[pb.GatewayReport, pb.ReportResponse] = grpc.unary_unary_rpc_method_handler(
            self._report, pb.GatewayReport.FromString, pb.ReportResponse.SerializeToString
        )
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {method: handler, REPORT.rpartition("/")[2]: reports}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
        self.address = f"127.0.0.1:{self._server.add_insecure_port(f'127.0.0.1:{port}')}"
        await self._server.start()

    async def until_refused(self, times: int) -> None:
        await self._until(lambda: self.refused >= times)

    async def until_in_force(self, processes: int) -> None:
        """Returns once so many processes have had the table in force; not all of them need to live still."""
        await self._until(lambda: self._in_force() >= processes)

    async def until_held(self) -> str:
        """The name of a process that holds a request, once there is one."""
        await self._until(lambda: bool(self._holders()))
        return self._holders()[0]

    def _in_force(self) -> int:
        return sum(report.generation == self._table.generation for report in self.reports.values())

    def _holders(self) -> list[str]:
        return [name for name, report in self.reports.items() if any(lane.inflight for lane in report.lanes)]

    async def _until(self, is_so: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not is_so():
                await self._call.wait()
                self._call.clear()

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(None)
            self._server = None

    def write_control_file(self, folder: Path) -> Path:
        path = folder / "control.json"
        path.touch(mode=0o600)
        path.write_text(json.dumps({"address": self.address, "token": self._token}))
        return path

    async def _report(
        self, report: pb.GatewayReport, _: "grpc.aio.ServicerContext[pb.GatewayReport, pb.ReportResponse]"
    ) -> pb.ReportResponse:
        self.reports[report.gateway] = report
        self._call.set()
        self.on_report(report)
        return pb.ReportResponse()

    async def _watch_routes(
        self,
        _: pb.WatchRoutesRequest,
        context: "grpc.aio.ServicerContext[pb.WatchRoutesRequest, pb.RouteTable]",
    ) -> AsyncIterator[pb.RouteTable]:
        if ("authorization", f"Bearer {self._token}") not in tuple(context.invocation_metadata() or ()):
            self.refused += 1
            self._call.set()
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "the controller asks for the cluster's token")
        while True:
            pushed = self._pushed
            yield self._table
            await pushed.wait()


@asynccontextmanager
async def controller() -> AsyncIterator[FakeController]:
    one = FakeController()
    await one.start()
    try:
        yield one
    finally:
        await one.stop()
