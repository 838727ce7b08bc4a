"""The called end of a connection that carries one call."""

import asyncio
from collections.abc import Mapping
from typing import Final, Protocol

import grpc

from worker.http2 import frames as http2
from worker.http2.duplex import GOODBYE_S, Duplex, Ended, Keepalive
from worker.http2.frames import Code, ConnectionFault, Flag
from worker.http2.hpack import Header
from worker.http2.status import OK_HEADERS, status_block

MOST_WITHOUT_A_CALL: Final = 64
"""Frames that a connection may send before its call."""


class Host(Protocol):
    """Whom a connection tells what becomes of it."""

    def made(self, connection: "Accepted") -> None: ...
    def opened(self, call: "Accepted") -> None:
        """Its call has come: whoever takes it ends it by `finish`."""

    def lost(self, connection: "Accepted") -> None: ...


class Accepted(Duplex):
    """Made for each connection of a listening port."""

    def __init__(self, max_message_bytes: int, keepalive: Keepalive, host: Host) -> None:
        super().__init__(max_message_bytes, keepalive)
        self._host = host
        self._greeted = False
        self._frames_without_a_call = 0
        self.method = ""
        self.metadata: Mapping[str, str] = {}
        self.peer = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        name = transport.get_extra_info("peername")
        self.peer = f"{name[0]}:{name[1]}" if name else "somebody"
        self._host.made(self)

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        self._host.lost(self)

    def finish(self, status: grpc.StatusCode, message: str = "") -> None:
        """Tells the caller how the call ended, and hangs up."""
        if not self._transport.is_closing():
            headers = b"" if self._told_headers else OK_HEADERS
            self._send_headers(Flag.END_STREAM, headers + status_block(status, message))
            self._transport.write(http2.goaway(self._stream_id, Code.NO_ERROR, "one call a connection"))
        self._end(Ended("the call is over"))
        self._wait_for_their_end()

    def _wait_for_their_end(self) -> None:
        """Hangs up once the caller has, or after a while. Were the connection closed at once, the caller might never
        read how the call ended: the kernel resets one with something unread, and gRPC takes its end for a loss.
        """
        asyncio.get_running_loop().call_later(GOODBYE_S, self._transport.abort)

    async def write(self, message: bytes) -> None:
        if not self._told_headers and self._ended is None:
            self._send_headers(0, OK_HEADERS)
        await super().write(message)

    def _take(self, data: bytes) -> bytes:
        if not self._greeted:
            have = min(len(data), len(http2.PREFACE))
            if data[:have] != http2.PREFACE[:have]:
                raise ConnectionFault(Code.PROTOCOL_ERROR, "not an HTTP/2 client")
            if have < len(http2.PREFACE):
                return data
            self._greeted = True
            data = data[have:]
        return super()._take(data)

    def _take_frame(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        if not self._stream_id:
            self._frames_without_a_call += 1
            if self._frames_without_a_call > MOST_WITHOUT_A_CALL:
                raise ConnectionFault(Code.ENHANCE_YOUR_CALM, "too many frames before a call")
        super()._take_frame(kind, flags, stream_id, payload)

    def _take_headers(self, stream_id: int, headers: tuple[Header, ...], *, ends: bool) -> None:
        if self._stream_id:
            if stream_id != self._stream_id:
                self._reply(http2.reset(stream_id, Code.REFUSED_STREAM))
            elif ends:
                self._other_ended()
            return
        if not stream_id & 1 or not http2.well_formed(headers):
            raise ConnectionFault(Code.PROTOCOL_ERROR, "not a call")
        self._stream_id = stream_id
        self.metadata = dict(headers)
        self.method = self.metadata.get(":path", "")
        self._host.opened(self)
        if ends:
            self._other_ended()
