"""The calling end of a connection that carries one call."""

import asyncio
from collections.abc import Sequence
from typing import Final, cast
from urllib.parse import unquote

import grpc

from worker.http2 import frames as http2
from worker.http2.duplex import Duplex, Ended, Keepalive
from worker.http2.frames import Code
from worker.http2.hpack import Header, encode

_STATUS: Final = {str(status.value[0]): status for status in grpc.StatusCode}


async def dial(
    address: str, method: str, metadata: Sequence[Header], *, max_message_bytes: int, keepalive: Keepalive
) -> "Dialled":
    """Connects to host:port and begins the call. Raises OSError where nobody listens there."""
    host, _, port = address.rpartition(":")
    loop = asyncio.get_running_loop()
    _, call = await loop.create_connection(
        lambda: Dialled(address, method, metadata, max_message_bytes, keepalive), host.strip("[]"), int(port)
    )
    return call


class Dialled(Duplex):
    """Made by `dial`. Its owner closes it."""

    def __init__(
        self, address: str, method: str, metadata: Sequence[Header], max_message_bytes: int, keepalive: Keepalive
    ) -> None:
        super().__init__(max_message_bytes, keepalive)
        self._request: tuple[Header, ...] = (
            (":method", "POST"),
            (":scheme", "http"),
            (":path", method),
            (":authority", address),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            *metadata,
        )
        self._answered = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast("asyncio.Transport", transport).write(http2.PREFACE)
        super().connection_made(transport)
        self._stream_id = 1
        self._send_headers(0, encode(*self._request))

    def close(self) -> None:
        """Withdraws the call and cuts the connection."""
        if self._ended is None:
            self._transport.write(http2.reset(self._stream_id, Code.CANCEL))
            self._end(Ended("the call was withdrawn"))
        self.hang_up()

    def _take_headers(self, stream_id: int, headers: tuple[Header, ...], *, ends: bool) -> None:
        if stream_id != self._stream_id:
            raise http2.ConnectionFault(Code.PROTOCOL_ERROR, f"headers on stream {stream_id}")
        told = dict(headers)
        if not self._answered and told.get(":status") != "200":
            self._end(Ended(f"HTTP status {told.get(':status')}"))
            return
        self._answered = True
        if ends or "grpc-status" in told:
            status = _STATUS.get(told.get("grpc-status", ""), grpc.StatusCode.UNKNOWN)
            said = f"{status.name}: {unquote(told.get('grpc-message', ''))}"
            self._end(Ended("the other end closed the stream" if status is grpc.StatusCode.OK else said))
