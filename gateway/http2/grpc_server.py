"""A server of gRPC over plain HTTP/2 on one port: takes connections, watches over them, drains them.

Written for one thing: many small unary calls at once on Python's event loop, where grpc.aio spends ten times what a
call's frames cost. A client cannot tell the difference.
"""

import asyncio
import logging
from time import monotonic
from typing import Final

from gateway.http2.call import Methods
from gateway.http2.calls import Desk
from gateway.http2.connection import Connection
from gateway.http2.connections import Connections
from gateway.settings import ServerLimits

BACKLOG: Final = 1024
"""Connections that the kernel holds for us until they are taken."""

LOOK_MIN_S: Final = 0.02
LOOK_MAX_S: Final = 0.5

END_S: Final = 3.0
"""Longest wait for handlers to return that were cancelled, and for clients to take their statuses."""

logger = logging.getLogger(__name__)


class GrpcServer:
    def __init__(self, methods: Methods, limits: ServerLimits) -> None:
        self._desk = Desk(methods, limits)
        self._connections = Connections(limits.max_connections)
        self._listening: asyncio.Server | None = None
        self._looking: asyncio.Task[None] | None = None
        self._look_s = max(LOOK_MIN_S, min(LOOK_MAX_S, *(seconds / 4 for seconds in _waits(limits))))

    @property
    def calls(self) -> int:
        """Begun and not answered, those whose requests are still on their way in among them."""
        return self._desk.calls + self._desk.arriving

    @property
    def receiving(self) -> int:
        """Bytes of requests that are on their way in."""
        return self._desk.receiving

    async def start(self, host: str, port: int) -> int:
        """Listens, beside other processes that ask for the same port; returns the port. Raises OSError."""
        loop = asyncio.get_running_loop()
        self._listening = await loop.create_server(
            lambda: Connection(self._desk, self._connections), host, port, reuse_port=True, backlog=BACKLOG
        )
        self._looking = asyncio.create_task(self._look_forever(), name="connections")
        return int(self._listening.sockets[0].getsockname()[1])

    async def stop(self, finish_s: float = 0.0) -> None:
        """Takes no new connection and no new call; ends what is not answered after `finish_s` seconds.

        A call that was on its way is either begun, and answered, or the client is told that it was not and calls again
        elsewhere. Handlers have `END_S` to return once their calls were ended; then their connections end without them.
        """
        if self._listening is None:
            return
        self._listening.close()
        self._listening = None
        self._connections.leave()
        await _turns()
        try:
            async with asyncio.timeout(finish_s):
                await self._connections.none.wait()
        except TimeoutError:
            await self._end()
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)
        self._desk.close()

    async def _end(self) -> None:
        try:
            async with asyncio.timeout(END_S):
                await asyncio.gather(*(connection.end() for connection in self._connections))
                await self._connections.none.wait()
        except TimeoutError:
            logger.warning("%d connections did not end within %g s, or their calls", len(self._connections), END_S)
            for connection in self._connections:
                connection.abort()
            await _turns()

    async def _look_forever(self) -> None:
        while True:
            await asyncio.sleep(self._look_s)
            now = monotonic()
            for connection in self._connections:
                connection.look(now)


async def _turns() -> None:
    """A connection that the kernel has handed over takes a few turns of the event loop to be made, or lost."""
    for _ in range(4):
        await asyncio.sleep(0)


def _waits(limits: ServerLimits) -> tuple[float, ...]:
    return limits.keepalive_s, limits.keepalive_timeout_s, limits.idle_s, limits.receive_s, limits.greeting_s
