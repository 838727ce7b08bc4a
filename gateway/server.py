"""One process of the gateway: puts the parts together, serves, drains."""

import asyncio
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc
import grpc.aio

from gateway.health import Health
from gateway.reflection import reflection_handlers
from gateway.routes import Routes
from gateway.servicer import Servicer
from gateway.settings import ServerLimits
from gateway.statistics import Statistics
from gateway.watch import Watch
from protos import control_pb2 as pb


class Gateway:
    """`async with Gateway(address)`, then `apply` route tables, or give it a control file to follow."""

    def __init__(
        self,
        address: str,
        *,
        control_file: Path | None = None,
        statistics: Statistics | None = None,
        limits: ServerLimits | None = None,
        version: str = "0",
    ) -> None:
        """`address`: host:port; port 0 takes a free one. `statistics` None: this process counts for itself."""
        self._address = address
        self._control_file = control_file
        self._limits = limits or ServerLimits()
        statistics = statistics or Statistics.alone()
        self.routes = Routes(statistics)
        self.health = Health(self.routes.ready)
        self._servicer = Servicer(self.routes, statistics, self.health, version)
        self._server: grpc.aio.Server | None = None
        self._watching: asyncio.Task[None] | None = None
        self.port = 0

    def apply(self, table: pb.RouteTable, token: str) -> None:
        """Puts a route table in force; `token` opens the workers' doors. Raises `InvalidRequest`."""
        self.routes.apply(table, token)
        self.health.changed()

    async def start(self) -> None:
        """Listens on `self.port`. Raises OSError where the address cannot be had."""
        server = grpc.aio.server(options=_options(self._limits), maximum_concurrent_rpcs=self._limits.max_calls)
        # Generic handlers, because grpc.aio waits on one future per registered method for each new call.
        server.add_generic_rpc_handlers((self._servicer.handlers(), self.health.handlers(), *reflection_handlers()))
        try:
            self.port = server.add_insecure_port(self._address)
        except RuntimeError as error:
            raise OSError(f"cannot listen on {self._address}: {error}") from error
        await server.start()
        self._server = server
        if self._control_file is not None:
            watch = Watch(self._control_file, self.apply)
            self._watching = asyncio.create_task(watch.run_forever(), name="route table")

    async def drain(self, notice_s: float, finish_s: float) -> None:
        """Not ready; after `notice_s` no new calls; those at work have `finish_s` more. Seconds."""
        self.health.drain()
        await asyncio.sleep(notice_s)
        await self._servicer.hold_answers()
        await self.stop(finish_s)

    async def stop(self, finish_s: float = 0.0) -> None:
        """Takes no new call; those at work are cancelled after `finish_s` seconds."""
        self.health.close()
        if self._server is not None:
            stopping = asyncio.create_task(self._server.stop(finish_s))
            await asyncio.sleep(0)  # clients are told to go elsewhere before they get the answers that were held
            self._servicer.release_answers()
            await stopping
            self._server = None
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
            self._watching = None
        await self.routes.close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()


def _options(limits: ServerLimits) -> list[tuple[str, int]]:
    return [
        ("grpc.so_reuseport", 1),
        ("grpc.max_receive_message_length", limits.max_message_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_concurrent_streams", limits.max_streams),
        # Core's protection counts streams that have ended but are not freed yet, and resets those of clients that keep
        # to the advertised limit.
        ("grpc.http.overload_protection", 0),
        ("grpc.max_allowed_incoming_connections", limits.max_connections),
        # Beyond these core drops calls with a bare CANCELLED; up to them a call over `max_calls` is told why.
        ("grpc.server.max_pending_requests", limits.max_calls),
        ("grpc.server.max_pending_requests_hard_limit", 2 * limits.max_calls),
        ("grpc.max_connection_idle_ms", int(limits.idle_s * 1000)),
        ("grpc.keepalive_time_ms", int(limits.keepalive_s * 1000)),
        ("grpc.keepalive_timeout_ms", int(limits.keepalive_timeout_s * 1000)),
        ("grpc.keepalive_permit_without_calls", 1),
        # Clients may probe as often as every 5 s; the default policy closes a connection that does so.
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ]
