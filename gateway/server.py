"""One process of the gateway: puts the parts together, serves, drains."""

import asyncio
import os
import secrets
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from gateway.health import Health
from gateway.http2.grpc_server import GrpcServer
from gateway.reflection import reflection_methods
from gateway.routes import Routes
from gateway.servicer import Servicer
from gateway.settings import ServerLimits
from gateway.statistics import Statistics
from gateway.watch import Watch
from protos import control_pb2 as pb

FIRST_TABLE_S: Final = 2.0
"""Longest wait for a route table before the port opens without one, seconds."""


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
        statistics = statistics or Statistics.alone()
        self.routes = Routes(statistics)
        self.health = Health(self.routes.ready)
        servicer = Servicer(self.routes, statistics, self.health, version)
        methods = servicer.methods() | self.health.methods() | reflection_methods()
        self._server = GrpcServer(methods, limits or ServerLimits())
        self._watching: asyncio.Task[None] | None = None
        self._has_table = asyncio.Event()
        self.port = 0

    @property
    def calls(self) -> int:
        """Begun and not answered."""
        return self._server.calls

    @property
    def receiving(self) -> int:
        """Bytes of requests that are on their way in."""
        return self._server.receiving

    def apply(self, table: pb.RouteTable, token: str) -> None:
        """Puts a route table in force; `token` opens the workers' doors. Raises `InvalidRequest`."""
        self.routes.apply(table, token)
        self.health.changed()
        self._has_table.set()

    async def start(self) -> None:
        """Listens on `self.port`, once it knows a route table or has waited `FIRST_TABLE_S` for one.

        Another process on the port would answer meanwhile; this one knew no model. Raises OSError where the address
        cannot be had.
        """
        host, _, port = self._address.rpartition(":")
        if self._control_file is not None:
            name = f"{os.getpid()}-{secrets.token_hex(4)}"
            watch = Watch(
                self._control_file,
                self.apply,
                report=lambda: self.routes.report(name),
                report_now=self.routes.report_now,
            )
            self._watching = asyncio.create_task(watch.run_forever(), name="route table")
            with suppress(TimeoutError):
                async with asyncio.timeout(FIRST_TABLE_S):
                    await self._has_table.wait()
        try:
            self.port = await self._server.start(host.strip("[]"), int(port))
        except OSError as error:
            await self.stop()
            raise OSError(error.errno, f"cannot listen on {self._address}: {error.strerror}") from error

    async def drain(self, notice_s: float, finish_s: float) -> None:
        """Not ready; after `notice_s` no new calls; those at work have `finish_s` more. Seconds."""
        self.health.drain()
        await asyncio.sleep(notice_s)
        await self.stop(finish_s)

    async def stop(self, finish_s: float = 0.0) -> None:
        """Takes no new call; those at work are ended after `finish_s` seconds."""
        self.health.close()
        await self._server.stop(finish_s)
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
