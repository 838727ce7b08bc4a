"""One gRPC call of messages both ways, on an HTTP/2 connection of its own (RFC 9113): what both of its ends do.

Between processes of one cluster only. Any gRPC peer can be at the other end; one of ours sends a message of some MiB as
one frame, where others cut it into frames of 16 KiB.
"""

import asyncio
import os
import struct
from asyncio.trsock import TransportSocket
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Final, cast

from worker.http2 import frames as http2
from worker.http2.frames import Code, ConnectionFault, Flag, Kind, Setting
from worker.http2.hpack import EMPTY_TABLE, Header, HeaderDecoder, HeaderError, HeadersTooLarge

WINDOW: Final = 16 << 20
FRAME_BYTES: Final = 8 << 20
HEADER_BYTES: Final = 16 << 10
"""What the other end may send: ahead of what was read, in one frame of data, and as headers."""

UNSENT_BYTES: Final = 32 << 20
"""What may wait to be sent when the other end asks for an answer; a message may be among it."""

GOODBYE_S: Final = 1.0
"""Longest wait for the other end to take what is written, before the connection is cut."""

_PREFIX: Final = struct.Struct(">BI")
_SMALL_FRAME: Final = http2.DEFAULT_FRAME_BYTES
_SMALL_PIECE: Final = 4096
_SECOND_LOOK_S: Final = 0.05
_ARE_YOU_THERE: Final = b"silence?"


class Ended(Exception):
    """The call is over: its text says why."""


@dataclass(frozen=True, slots=True)
class Keepalive:
    """A connection that was silent for `after_s` seconds is probed, and cut where no answer comes for `timeout_s`."""

    after_s: float
    timeout_s: float


class Duplex(asyncio.Protocol):
    """An end of the call. Belongs to the event loop it was made on; one task reads, one writes."""

    def __init__(self, max_message_bytes: int, keepalive: Keepalive) -> None:
        self._max_message_bytes = max_message_bytes
        self._keepalive = keepalive
        self._decoder: HeaderDecoder[tuple[Header, ...]] = HeaderDecoder(HEADER_BYTES, lambda headers: headers)
        self._stream_id = 0
        self._ended: Ended | None = None
        self._rest = b""
        # What comes in:
        self._frame_left = 0
        self._frame_ends = False
        self._prefix = b""
        self._message_left = 0
        self._pieces: list[bytes | memoryview] = []
        self._messages: deque[bytes] = deque()
        self._reader: asyncio.Future[None] | None = None
        self._window = WINDOW
        self._unacknowledged = 0
        # What goes out:
        self._told_headers = False
        self._initial_window = self._stream_window = self._connection_window = http2.DEFAULT_WINDOW
        self._peer_frame_bytes = http2.DEFAULT_FRAME_BYTES
        self._paused = False
        self._writer: asyncio.Future[None] | None = None
        self._heard_at = self._probed_at = 0.0
        self._doubted = False
        self._look_again: asyncio.TimerHandle | None = None

    async def read(self) -> bytes:
        """The next message. Raises `Ended`, after the last one."""
        while not self._messages:
            if self._ended is not None:
                raise self._ended
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader
        message = self._messages.popleft()
        self._acknowledge(_PREFIX.size + len(message))
        return message

    async def write(self, message: bytes) -> None:
        """Returns when the connection has taken all of it. Raises `Ended`."""
        view, start = memoryview(message), _PREFIX.pack(0, len(message))
        while start or view:
            await self._may_write(len(start) or 1)
            size = min(len(start) + len(view), self._peer_frame_bytes, self._stream_window, self._connection_window)
            self._stream_window -= size
            self._connection_window -= size
            taken = size - len(start)
            head = http2.frame_header(size, Kind.DATA, 0, self._stream_id) + start
            self._send((head, view[:taken]) if taken else (head,))
            view, start = view[taken:], b""
        await self._may_write(0)

    def _send(self, parts: Sequence[bytes | memoryview]) -> None:
        """Writes to the socket itself where nothing waits before it: `uvloop` keeps the interpreter's lock through a
        write, and the thread that computes would have to wait for it.
        """
        sent = 0
        if not self._transport.get_write_buffer_size() and not self._transport.is_closing():
            try:
                sent = os.writev(self._socket.fileno(), parts)
            except BlockingIOError:
                sent = 0  # it is full: the transport goes on once it is not
            except OSError as error:  # told once: the transport will find it broken, and no longer why
                self._end(Ended(f"the connection was lost: {error}"))
        for part in parts:
            if sent < len(part):
                self._transport.write(memoryview(part)[sent:])
            sent = max(0, sent - len(part))

    def abort(self, why: str = "the connection was cut") -> None:
        """Ends the call without a word."""
        self._end(Ended(why))
        self._transport.abort()

    def _send_headers(self, flags: int, block: bytes) -> None:
        block = block if self._told_headers else EMPTY_TABLE + block
        self._told_headers = True
        self._transport.write(http2.frame(Kind.HEADERS, flags | Flag.END_HEADERS, self._stream_id, block))

    def hang_up(self) -> None:
        """Cuts the connection once what is written was sent, or was not for a while."""
        self._transport.close()
        asyncio.get_running_loop().call_later(GOODBYE_S, self._transport.abort)

    async def _may_write(self, size: int) -> None:
        """Waits until `size` bytes may be sent."""
        while self._ended is None and (self._paused or min(self._stream_window, self._connection_window) < size):
            self._writer = asyncio.get_running_loop().create_future()
            await self._writer
        if self._ended is not None:
            raise self._ended

    def _end(self, ended: Ended) -> None:
        if self._ended is None:
            self._ended = ended
            if self._look_again is not None:
                self._look_again.cancel()
            _wake(self._reader)
            _wake(self._writer)

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._socket: TransportSocket = transport.get_extra_info("socket")
        self._heard_at = monotonic()
        self._transport.write(
            http2.settings(
                MAX_CONCURRENT_STREAMS=1,
                INITIAL_WINDOW_SIZE=WINDOW,
                MAX_FRAME_SIZE=FRAME_BYTES,
                MAX_HEADER_LIST_SIZE=HEADER_BYTES,
            )
            + http2.window_update(0, WINDOW - http2.DEFAULT_WINDOW)
        )
        self._look()

    def connection_lost(self, error: Exception | None) -> None:
        self._end(Ended(f"the connection was lost: {error}" if error else "the connection was closed"))

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        _wake(self._writer)

    def data_received(self, data: bytes) -> None:
        self._heard_at = monotonic()
        self._doubted = False
        if self._ended is not None:
            return
        try:
            self._rest = self._take(self._rest + data if self._rest else data)
        except (ConnectionFault, HeaderError, HeadersTooLarge) as error:
            code = error.code if isinstance(error, ConnectionFault) else Code.COMPRESSION_ERROR
            self._transport.write(http2.goaway(self._stream_id, code, str(error)))
            self._end(Ended(f"the other end broke the protocol: {error}"))
            self.hang_up()

    def _look(self) -> None:
        """Probes a silent connection, and cuts one that does not answer. What came while this process stood still is
        read before that: a second look decides.
        """
        if self._transport.is_closing():
            return
        now = monotonic()
        if self._probed_at > self._heard_at:
            left = self._probed_at + self._keepalive.timeout_s - now
            if left <= 0 and self._doubted:
                self.abort(f"no answer to a probe within {self._keepalive.timeout_s:g} s")
                return
            self._doubted = left <= 0
            left = max(left, _SECOND_LOOK_S) if self._doubted else left
        else:
            left = self._heard_at + self._keepalive.after_s - now
            if left <= 0:
                self._transport.write(http2.frame(Kind.PING, 0, 0, _ARE_YOU_THERE))
                self._probed_at, left = now, self._keepalive.timeout_s
        self._look_again = asyncio.get_running_loop().call_later(left, self._look)

    # Frames that come in.

    def _take(self, data: bytes) -> bytes:
        """Takes every whole frame, and of data whatever there is; returns the rest. Raises `ConnectionFault`."""
        offset, size, view = 0, len(data), memoryview(data)
        while offset < size and self._ended is None:
            if self._frame_left:
                taken = min(self._frame_left, size - offset)
                self._frame_left -= taken
                self._take_data(view[offset : offset + taken])
                offset += taken
                if not self._frame_left and self._frame_ends:
                    self._other_ended()
                continue
            if size - offset < http2.FRAME_HEADER_BYTES:
                break
            length, kind, flags, stream_id = http2.read_frame_header(data, offset)
            start = offset + http2.FRAME_HEADER_BYTES
            if kind == Kind.DATA:
                self._begin_data(length, flags, stream_id)
                offset = start
                continue
            if length > _SMALL_FRAME:
                raise ConnectionFault(Code.FRAME_SIZE_ERROR, f"a frame of {length} bytes that holds no data")
            end = start + length
            if end > size:
                break
            self._take_frame(kind, flags, stream_id, data[start:end])
            offset = end
        return data[offset:]

    def _begin_data(self, length: int, flags: int, stream_id: int) -> None:
        if not self._stream_id or stream_id != self._stream_id or flags & Flag.PADDED:
            raise ConnectionFault(Code.PROTOCOL_ERROR, "data that belong to no call, or with padding")
        self._window -= length
        if length > FRAME_BYTES or self._window < 0:
            raise ConnectionFault(Code.FLOW_CONTROL_ERROR, f"{length} bytes of data; fewer were allowed")
        self._frame_left, self._frame_ends = length, bool(flags & Flag.END_STREAM)
        if not length and self._frame_ends:
            self._other_ended()

    def _take_data(self, data: memoryview) -> None:
        while data:
            if not self._message_left:
                missing = _PREFIX.size - len(self._prefix)
                self._prefix += bytes(data[:missing])
                data = data[missing:]
                if len(self._prefix) < _PREFIX.size:
                    return
                packed, self._message_left = _PREFIX.unpack(self._prefix)
                self._prefix = b""
                if packed or self._message_left > self._max_message_bytes:
                    said = "a compressed message" if packed else f"a message of {self._message_left} bytes"
                    raise ConnectionFault(Code.ENHANCE_YOUR_CALM, f"{said}; at most {self._max_message_bytes}, plain")
                if not self._message_left:
                    self._arrived(b"")
                continue
            piece = data[: self._message_left]
            data = data[len(piece) :]
            # A view holds all that came with it: what is small is copied.
            self._pieces.append(piece if len(piece) >= _SMALL_PIECE else bytes(piece))
            self._message_left -= len(piece)
            if not self._message_left:
                message = b"".join(self._pieces)
                self._pieces.clear()
                self._arrived(message)

    def _arrived(self, message: bytes) -> None:
        self._messages.append(message)
        _wake(self._reader)

    def _acknowledge(self, size: int) -> None:
        """Lets the other end send as much again, a quarter of the window at a time."""
        self._unacknowledged += size
        if self._unacknowledged >= WINDOW // 4 and self._ended is None:
            self._window += self._unacknowledged
            self._transport.write(
                http2.window_update(0, self._unacknowledged)
                + http2.window_update(self._stream_id, self._unacknowledged)
            )
            self._unacknowledged = 0

    def _take_frame(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        if kind == Kind.HEADERS:
            if not flags & Flag.END_HEADERS:
                raise ConnectionFault(Code.ENHANCE_YOUR_CALM, f"headers of over {_SMALL_FRAME} bytes")
            if flags & (Flag.PADDED | Flag.PRIORITY):
                payload = http2.unpadded(payload, flags, priority=True)
            self._take_headers(stream_id, self._decoder.decode(payload), ends=bool(flags & Flag.END_STREAM))
        elif kind == Kind.SETTINGS and not flags & Flag.ACK:
            self._configure(http2.read_settings(payload))
        elif kind == Kind.WINDOW_UPDATE:
            self._widen(stream_id, http2.number(payload, "WINDOW_UPDATE") & http2.MAX_WINDOW)
        elif kind == Kind.PING and not flags & Flag.ACK:
            if len(payload) != len(_ARE_YOU_THERE):
                raise ConnectionFault(Code.FRAME_SIZE_ERROR, f"a PING frame of {len(payload)} bytes")
            self._reply(http2.frame(Kind.PING, Flag.ACK, 0, payload))
        elif kind == Kind.RST_STREAM and stream_id == self._stream_id:
            self._end(Ended(f"the other end reset the stream ({http2.number(payload, 'RST_STREAM')})"))
        elif kind == Kind.GOAWAY:
            self._take_farewell(payload)

    def _reply(self, frame: bytes) -> None:
        """Raises `ConnectionFault` where the other end asks on and on, and takes no answer."""
        if self._transport.get_write_buffer_size() > UNSENT_BYTES:
            raise ConnectionFault(Code.ENHANCE_YOUR_CALM, "it takes no answers")
        self._transport.write(frame)

    def _take_farewell(self, payload: bytes) -> None:
        """It names the last stream that the other end will answer."""
        last, why = int.from_bytes(payload[:4], "big") & http2.MAX_STREAM_ID, payload[8:208]
        if last < self._stream_id:
            self._end(Ended(f"the other end went away: {why.decode(errors='replace')}"))

    def _configure(self, settings: Sequence[tuple[int, int]]) -> None:
        for name, value in settings:
            if name == Setting.INITIAL_WINDOW_SIZE:
                self._stream_window += value - self._initial_window
                self._initial_window = value
            elif name == Setting.MAX_FRAME_SIZE:
                self._peer_frame_bytes = value
        self._reply(http2.frame(Kind.SETTINGS, Flag.ACK, 0))
        _wake(self._writer)

    def _widen(self, stream_id: int, size: int) -> None:
        if not stream_id:
            self._connection_window += size
        elif stream_id == self._stream_id:
            self._stream_window += size
        if max(self._connection_window, self._stream_window) > http2.MAX_WINDOW:
            raise ConnectionFault(Code.FLOW_CONTROL_ERROR, "a window of over 2 GiB")
        _wake(self._writer)

    def _take_headers(self, stream_id: int, headers: tuple[Header, ...], *, ends: bool) -> None:
        raise NotImplementedError

    def _other_ended(self) -> None:
        """The other end sends no more data."""
        self._end(Ended("the other end closed the stream"))


def _wake(future: asyncio.Future[None] | None) -> None:
    if future is not None and not future.done():
        future.set_result(None)
