"""Connections without a gateway behind them: calls are plain coroutines, and tests look when they choose."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from gateway.http2.call import CallContext, Methods, Unary
from gateway.http2.calls import Desk
from gateway.http2.connection import Connection
from gateway.http2.connections import Connections
from gateway.settings import ServerLimits
from tests.gateway.stock import MODEL_INFER


@dataclass(frozen=True)
class Bare:
    address: str
    desk: Desk
    connections: Connections

    @property
    def connection(self) -> Connection:
        """The only one."""
        (one,) = self.connections
        return one


async def echo(message: bytes, _: CallContext) -> bytes:
    return message


@asynccontextmanager
async def bare(call: Unary = echo, limits: ServerLimits | None = None) -> AsyncIterator[Bare]:
    desk, connections = Desk(Methods({MODEL_INFER: call}, {}), limits or ServerLimits()), Connections(16)
    server = await asyncio.get_running_loop().create_server(lambda: Connection(desk, connections), "127.0.0.1", 0)
    try:
        yield Bare(f"127.0.0.1:{server.sockets[0].getsockname()[1]}", desk, connections)
    finally:
        server.close()
        for connection in connections:
            await connection.end()
        desk.close()
