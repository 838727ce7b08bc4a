"""A port on which each connection carries one call."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import grpc

from worker.http2.accept import Accepted
from worker.http2.duplex import Keepalive

Refusal = tuple[grpc.StatusCode, str]


class Listener:
    """`refusal` says why a call is not taken, None: it is; `serve` does what it asks for, and ends it.

    A connection that begins no call within `greeting_s` seconds is cut; of those without a call, the oldest is where
    there are more than `max_waiting`.
    """

    def __init__(
        self,
        refusal: Callable[[Accepted], Refusal | None],
        serve: Callable[[Accepted], Coroutine[Any, Any, None]],
        *,
        max_message_bytes: int,
        keepalive: Keepalive,
        greeting_s: float = 5.0,
        max_waiting: int = 256,
    ) -> None:
        self._refusal = refusal
        self._serve = serve
        self._max_message_bytes = max_message_bytes
        self._keepalive = keepalive
        self._greeting_s = greeting_s
        self._max_waiting = max_waiting
        self._server: asyncio.Server | None = None
        self._open: set[Accepted] = set()
        self._waiting: dict[Accepted, asyncio.TimerHandle] = {}
        self._calls: set[asyncio.Task[None]] = set()
        self._none_open = asyncio.Event()
        self._none_open.set()

    async def listen(self, host: str, port: int) -> int:
        """Returns the port. Of a name's addresses, the first is listened on. Raises OSError."""
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port)
        self._server = await loop.create_server(
            lambda: Accepted(self._max_message_bytes, self._keepalive, self), str(found[0][4][0]), port
        )
        bound: int = self._server.sockets[0].getsockname()[1]
        return bound

    async def close(self, grace_s: float) -> None:
        """Takes no new connection; cancels the calls that have not ended within `grace_s` seconds, and hangs up."""
        if self._server is None:
            return
        self._server.close()
        self._server = None
        if self._calls:
            await asyncio.wait(self._calls, timeout=grace_s)
        for task in self._calls:
            task.cancel()
        await asyncio.gather(*self._calls, return_exceptions=True)
        for connection in list(self._open):
            connection.hang_up()
        await self._none_open.wait()  # `hang_up` has a bound

    # What connections tell.

    def made(self, connection: Accepted) -> None:
        if self._server is None:
            connection.abort()
            return
        self._open.add(connection)
        self._none_open.clear()
        if len(self._waiting) >= self._max_waiting:
            next(iter(self._waiting)).abort("others wait too")
        loop = asyncio.get_running_loop()
        self._waiting[connection] = loop.call_later(self._greeting_s, connection.abort, "no call came")

    def opened(self, call: Accepted) -> None:
        refusal = self._refusal(call)
        if refusal is not None:
            call.finish(*refusal)  # until it is gone, it counts as one without a call
            return
        self._stop_waiting(call)
        task = asyncio.create_task(self._serve(call))
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)

    def lost(self, connection: Accepted) -> None:
        self._stop_waiting(connection)
        self._open.discard(connection)
        if not self._open:
            self._none_open.set()

    def _stop_waiting(self, connection: Accepted) -> None:
        timer = self._waiting.pop(connection, None)
        if timer is not None:
            timer.cancel()
