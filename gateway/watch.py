"""Follows the controller's route table.

While the controller is away the last table stays in force; the pause between two tries grows to a bound.
"""

import asyncio
import logging
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, TypeAlias

import grpc
import grpc.aio

from gateway.control_file import Control, read_control_file
from protos import control_pb2 as pb
from worker.channel import DIRECT
from worker.errors import ShardlineError

METHOD = "/shardline.v1.Controller/WatchRoutes"
REPORT = "/shardline.v1.Controller/Report"

_WatchRoutes: TypeAlias = "grpc.aio.UnaryStreamMultiCallable[pb.WatchRoutesRequest, pb.RouteTable]"
_Report: TypeAlias = "grpc.aio.UnaryUnaryMultiCallable[pb.GatewayReport, pb.ReportResponse]"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WatchTimings:
    """Seconds.

    retry_min_s, retry_max_s: pause before the first and before every later new connection.
    keepalive_s, keepalive_timeout_s: a silent controller is probed this often, and given up this long after a probe.
    first_table_s: longest wait for the first table of a connection.
    report_s: the controller hears from us this often. report_pause_s: and no more often than with this between.
    """

    retry_min_s: float = 0.1
    retry_max_s: float = 5.0
    keepalive_s: float = 10.0
    keepalive_timeout_s: float = 5.0
    first_table_s: float = 10.0
    report_s: float = 0.5
    report_pause_s: float = 0.05


class Watch:
    """`apply` gets every table, with the cluster's token. `report` says what the controller is told meanwhile, and
    `report_now` when it should not wait; without them it is told nothing.
    """

    def __init__(
        self,
        control_file: Path,
        apply: Callable[[pb.RouteTable, str], None],
        timings: WatchTimings | None = None,
        *,
        report: Callable[[], pb.GatewayReport] | None = None,
        report_now: asyncio.Event | None = None,
    ) -> None:
        self._control_file = control_file
        self._apply = apply
        self._timings = timings or WatchTimings()
        self._report = report
        self._report_now = report_now or asyncio.Event()
        self._said = ""
        self._tables = 0

    async def run_forever(self) -> NoReturn:
        """Returns by being cancelled."""
        pause = self._timings.retry_min_s
        while True:
            self._tables = 0
            try:
                await self._follow(read_control_file(self._control_file))
            except (ShardlineError, grpc.aio.AioRpcError, TimeoutError) as error:
                self._say(_why(error))
            if self._tables:
                pause = self._timings.retry_min_s
            await asyncio.sleep(pause * random.uniform(0.8, 1.2))
            pause = min(2 * pause, self._timings.retry_max_s)

    async def _follow(self, control: Control) -> None:
        """Applies every table of one connection. Raises when it ends."""
        async with grpc.aio.insecure_channel(control.address, options=_channel_options(self._timings)) as channel:
            watch_routes: _WatchRoutes = channel.unary_stream(
                METHOD, pb.WatchRoutesRequest.SerializeToString, pb.RouteTable.FromString
            )
            call = watch_routes(pb.WatchRoutesRequest(), metadata=(("authorization", f"Bearer {control.token}"),))
            async with asyncio.timeout(self._timings.first_table_s):
                table = await call.read()
            reporting = asyncio.create_task(self._report_forever(channel, control.token), name="reports")
            try:
                while isinstance(table, pb.RouteTable):
                    self._put_in_force(table, control.token)
                    table = await call.read()
            finally:
                reporting.cancel()
                await asyncio.gather(reporting, return_exceptions=True)
        self._say("the controller closed the stream")

    async def _report_forever(self, channel: grpc.aio.Channel, token: str) -> None:
        """Tells the controller what we hold. A report that fails is not sent again: the next one holds it all."""
        if self._report is None:
            return
        send: _Report = channel.unary_unary(REPORT, pb.GatewayReport.SerializeToString, pb.ReportResponse.FromString)
        metadata = (("authorization", f"Bearer {token}"),)
        while True:
            try:
                await send(self._report(), timeout=self._timings.first_table_s, metadata=metadata)
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                    return
            with suppress(TimeoutError):
                async with asyncio.timeout(self._timings.report_s):
                    await self._report_now.wait()
            self._report_now.clear()
            await asyncio.sleep(self._timings.report_pause_s)

    def _put_in_force(self, table: pb.RouteTable, token: str) -> None:
        self._tables += 1
        self._said = ""
        try:
            self._apply(table, token)
        except ShardlineError as error:
            logger.warning("route table %d is not used, the one before it stays: %s", table.generation, error)
        else:
            logger.info("route table %d: %d model versions", table.generation, len(table.models))

    def _say(self, why: str) -> None:
        """Once, not with every try."""
        if why != self._said:
            self._said = why
            logger.warning("no connection to the controller: %s; the last route table stays in force", why)


def _why(error: Exception) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name}: {error.details()}"
    if isinstance(error, TimeoutError):
        return "it sent no route table in time"
    return str(error)


def _channel_options(timings: WatchTimings) -> list[tuple[str, int]]:
    return [
        DIRECT,
        ("grpc.keepalive_time_ms", int(timings.keepalive_s * 1000)),
        ("grpc.keepalive_timeout_ms", int(timings.keepalive_timeout_s * 1000)),
        ("grpc.http2.ping_timeout_ms", int(timings.keepalive_timeout_s * 1000)),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_retries", 0),
        ("grpc.max_receive_message_length", 64 << 20),
    ]
