"""One client's connection: HTTP/2 (RFC 9113) as gRPC uses it, from bytes to streams and back.

Everything that came in one read is begun before anything is answered, and everything that is answered in one turn of
the event loop leaves in one write: under load a call costs little more than its few frames.
"""

import asyncio
from time import monotonic
from typing import Final, cast

import grpc

from gateway.http2.call import Head, only_status_block, read_head
from gateway.http2.calls import Calls, Desk
from gateway.http2.connections import Connections
from gateway.http2.sender import MAX_FRAME_BYTES, Sender
from gateway.http2.stream import Stream
from worker.http2 import frames as http2
from worker.http2.frames import Code, ConnectionFault, Flag, Kind, Setting
from worker.http2.hpack import HARD_FACTOR, Header, HeaderDecoder, HeaderError, HeadersTooLarge

FRAME_BYTES: Final = 64 << 10
STREAM_WINDOW: Final = 4 << 20
CONNECTION_WINDOW: Final = 16 << 20
HEADER_BYTES: Final = 32 << 10
"""What we let a client send: in a frame, ahead of us on a stream and on a connection, and as one call's headers."""

MAX_BLOCK_BYTES: Final = HARD_FACTOR * HEADER_BYTES
"""A call with larger headers than these ends its connection; below it ends alone."""

GOODBYE_S: Final = 1.0
"""Longest wait for a client's answer to a farewell, and for it to hang up after one."""

SEND_S: Final = 30.0
"""Longest that a client may take nothing of an answer; then the answer is thrown away."""

TURN_COST: Final = 2048
"""Frames of one connection that are read before the others have their turn; one of headers counts by its length too."""

RUSH: Final = 4096
"""Frames that ask for work and lead to nothing - calls cancelled, empty data, probes, settings -: so many at once, and
`rush_per_s` for long. One of settings counts `SETTINGS_RUSH`."""

SETTINGS_RUSH: Final = 16

_DATA: Final = int(Kind.DATA)
_ARE_YOU_THERE: Final = b"silence?"
_GOING: Final = b"farewell"


class Connection(asyncio.Protocol):
    """`others`: the process's connections; this one is among them while it is open."""

    def __init__(self, desk: Desk, others: Connections) -> None:
        self._desk = desk
        self._others = others
        self._streams: dict[int, Stream] = {}
        self._headers: HeaderDecoder[Head | None] = HeaderDecoder(HEADER_BYTES, _read_head)
        self._rest = b""
        self._in_turn = True
        self._rush = 0.0
        self._rushed_at = 0.0
        self._greeted = False
        self._configured = False
        self._last_stream = 0
        self._block: tuple[int, int, bytearray] | None = None
        self._client_window = http2.DEFAULT_WINDOW
        self._unacknowledged = 0
        self._opened_at = self.heard_at = self._busy_at = monotonic()
        self._pinged_at = 0.0
        self._leaving_at = 0.0
        self._left_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._sender = Sender(self._transport, self._answered)
        self._calls = Calls(self._desk, self._sender)
        if not self._others.add(self):
            self._transport.abort()
            return
        self._sender.write(
            http2.settings(
                MAX_CONCURRENT_STREAMS=self._desk.limits.max_streams,
                INITIAL_WINDOW_SIZE=STREAM_WINDOW,
                MAX_FRAME_SIZE=FRAME_BYTES,
                MAX_HEADER_LIST_SIZE=HEADER_BYTES,
            )
        )
        self._sender.write(http2.window_update(0, CONNECTION_WINDOW - http2.DEFAULT_WINDOW))

    def connection_lost(self, _: Exception | None) -> None:
        self._others.discard(self)
        self._drop_all()

    def pause_writing(self) -> None:
        self._sender.pause()

    def resume_writing(self) -> None:
        self._sender.resume()

    def data_received(self, data: bytes) -> None:
        self.heard_at = monotonic()
        if self._rest:
            data = self._rest + data
        if self._in_turn:
            self._take(data)
        else:
            self._rest = data

    def _take(self, data: bytes) -> None:
        try:
            self._rest = data[self._read(data) :]
        except (ConnectionFault, HeaderError) as error:
            code = error.code if isinstance(error, ConnectionFault) else Code.COMPRESSION_ERROR
            self._sender.write(http2.goaway(self._last_stream, code, str(error)))
            self._rest = b""
            self._drop_all()
            self._hang_up()

    def _give_way(self) -> None:
        """The others have their turn before this connection is read on."""
        self._in_turn = False
        self._transport.pause_reading()
        asyncio.get_running_loop().call_soon(self._go_on)

    def _go_on(self) -> None:
        self._in_turn = True
        if self._transport.is_closing():
            return
        self._transport.resume_reading()
        self._take(self._rest)

    def _drop_all(self) -> None:
        for stream in list(self._streams.values()):
            self._calls.drop(stream)
        self._streams.clear()

    def _hang_up(self) -> None:
        """Sends what is written, for as long as a farewell may take."""
        self._sender.flush()
        self._transport.close()
        asyncio.get_running_loop().call_later(GOODBYE_S, self._transport.abort)

    def leave(self) -> None:
        """Tells the client to call elsewhere, begins what it has already sent, answers it, and hangs up."""
        if not self._leaving_at:
            self._leaving_at = monotonic()
            self._sender.write(http2.goaway(http2.MAX_STREAM_ID, Code.NO_ERROR))
            self._sender.write(http2.frame(Kind.PING, 0, 0, _GOING))

    @property
    def idle_since(self) -> float | None:
        """When its last call was over, or it was opened; None while it has a call."""
        return None if self._streams else self._busy_at

    def make_room(self) -> None:
        """Hangs up, to let another connection in. What the client sends from here on was never begun."""
        if self._transport.is_closing() or self._transport.get_write_buffer_size():
            self._transport.abort()
            return
        self._say_goodbye()
        self._hang_up()

    def abort(self) -> None:
        """Hangs up without a word."""
        self._transport.abort()

    async def end(self) -> None:
        """Ends every call with a status, and hangs up."""
        await self._calls.end_all(list(self._streams.values()))
        self._hang_up()

    def look(self, now: float) -> None:
        """To be called every so often: ends what has been waited for too long."""
        limits = self._desk.limits
        if not self._configured and now - self._opened_at > limits.greeting_s:
            self._transport.abort()
        elif self._pinged_at > self.heard_at:
            if now - self._pinged_at > limits.keepalive_timeout_s:
                self._transport.abort()
        elif now - self.heard_at > limits.keepalive_s:
            self._pinged_at = now
            self._sender.write(http2.frame(Kind.PING, 0, 0, _ARE_YOU_THERE))
        if self._left_at and not self._streams and now - self._left_at > GOODBYE_S:
            self._transport.close()
        elif self._leaving_at and not self._left_at and now - self._leaving_at > GOODBYE_S:
            self._say_goodbye()
        elif not self._streams and now - self._busy_at > limits.idle_s:
            self.leave()
        for stream in list(self._streams.values()):
            if stream.task is None and not stream.tail and now - stream.began > limits.receive_s:
                self._calls.expire(stream)
            elif stream.pending and (now - stream.moved_at > SEND_S or stream.time_remaining() == 0):
                self._reset(stream, Code.CANCEL)

    def _read(self, data: bytes) -> int:
        """Takes every whole frame; returns where the rest begins. Raises `ConnectionFault`, `HeaderError`."""
        offset = 0 if self._greeted else self._greet(data)
        if not self._greeted:
            return 0
        size, cost = len(data), 0
        while size - offset >= http2.FRAME_HEADER_BYTES:
            length, kind, flags, stream_id = http2.read_frame_header(data, offset)
            if length > FRAME_BYTES:
                raise ConnectionFault(Code.FRAME_SIZE_ERROR, f"a frame of {length} bytes")
            start = offset + http2.FRAME_HEADER_BYTES
            end = start + length
            if end > size:
                break
            offset = end
            cost += 1 if kind == _DATA else 1 + (length >> 6)
            if not self._configured and kind != Kind.SETTINGS:
                raise ConnectionFault(Code.PROTOCOL_ERROR, "the first frame is not SETTINGS")
            if self._block is not None and kind != Kind.CONTINUATION:
                raise ConnectionFault(Code.PROTOCOL_ERROR, "a header block is broken off")
            read = _READERS.get(kind)
            if read is not None:
                read(self, stream_id, flags, data[start:end])
            if cost > TURN_COST:
                self._give_way()
                break
        return offset

    def _hurry(self, cost: int = 1) -> None:
        """Counts a frame that leads to nothing. Raises `ConnectionFault` where there are too many."""
        now = monotonic()
        self._rush = max(0.0, self._rush - (now - self._rushed_at) * self._desk.limits.rush_per_s) + cost
        self._rushed_at = now
        if self._rush > RUSH:
            raise ConnectionFault(Code.ENHANCE_YOUR_CALM, "too many frames that lead to nothing")

    def _greet(self, data: bytes) -> int:
        have = min(len(data), len(http2.PREFACE))
        if data[:have] != http2.PREFACE[:have]:
            raise ConnectionFault(Code.PROTOCOL_ERROR, "not an HTTP/2 client")
        if have < len(http2.PREFACE):
            return 0
        self._greeted = True
        return have

    def _read_data(self, stream_id: int, flags: int, payload: bytes) -> None:
        stream = self._streams.get(stream_id)
        if not payload and not flags & Flag.END_STREAM:
            self._hurry()
        self._acknowledge(stream, len(payload))
        if stream is None:
            self._must_be_known(stream_id)
            return
        if stream.ended:
            self._reset(stream, Code.STREAM_CLOSED)
            return
        stream.heard_at = self.heard_at
        data = http2.unpadded(payload, flags) if flags & Flag.PADDED else payload
        self._calls.receive(stream, data, ended=bool(flags & Flag.END_STREAM))

    def _acknowledge(self, stream: Stream | None, size: int) -> None:
        """Lets the client send as much again, once half of a window is used."""
        self._unacknowledged += size
        if self._unacknowledged > CONNECTION_WINDOW // 2:
            self._sender.write(http2.window_update(0, self._unacknowledged))
            self._unacknowledged = 0
        if stream is None:
            return
        stream.unacknowledged += size
        if stream.unacknowledged > STREAM_WINDOW // 2:
            self._sender.write(http2.window_update(stream.id, stream.unacknowledged))
            stream.unacknowledged = 0

    def _read_headers(self, stream_id: int, flags: int, payload: bytes) -> None:
        if flags & (Flag.PADDED | Flag.PRIORITY):
            payload = http2.unpadded(payload, flags, priority=True)
        if flags & Flag.END_HEADERS:
            self._begin(stream_id, flags, payload)
        else:
            self._block = (stream_id, flags, bytearray(payload))

    def _read_continuation(self, stream_id: int, flags: int, payload: bytes) -> None:
        if self._block is None or self._block[0] != stream_id:
            raise ConnectionFault(Code.PROTOCOL_ERROR, "a CONTINUATION that continues nothing")
        _, first_flags, block = self._block
        block += payload
        if len(block) > MAX_BLOCK_BYTES or not payload:
            raise ConnectionFault(Code.ENHANCE_YOUR_CALM, f"headers in too many frames or over {MAX_BLOCK_BYTES} bytes")
        if flags & Flag.END_HEADERS:
            self._block = None
            self._begin(stream_id, first_flags, bytes(block))

    def _begin(self, stream_id: int, flags: int, block: bytes) -> None:
        ended = bool(flags & Flag.END_STREAM)
        stream = self._streams.get(stream_id)
        head, why = None, ""
        try:
            head = self._headers.decode(block)
        except HeadersTooLarge as error:
            why = str(error)
        if stream is not None:
            if stream.ended or not ended:
                raise ConnectionFault(Code.PROTOCOL_ERROR, "headers within a call")
            if head is None:
                self._reset(stream, Code.ENHANCE_YOUR_CALM if why else Code.PROTOCOL_ERROR)
            else:
                self._calls.receive(stream, b"", ended=True)
            return
        if not stream_id & 1:
            raise ConnectionFault(Code.PROTOCOL_ERROR, f"a client's stream has the number {stream_id}")
        if stream_id <= self._last_stream and not ended:
            raise ConnectionFault(Code.PROTOCOL_ERROR, f"a call begins on stream {stream_id}, which is over")
        if stream_id <= self._last_stream or self._left_at:
            return  # a stream that is over, or one that the client knows was never begun
        self._last_stream = stream_id
        if max(len(self._streams), self._calls.running) >= self._desk.limits.max_streams:
            self._sender.write(http2.reset(stream_id, Code.REFUSED_STREAM))
        elif head is None:
            self._refuse(stream_id, why, ended=ended)
        else:
            stream = Stream(stream_id, head, self._client_window)
            stream.ended = ended
            self._streams[stream_id] = stream
            self._calls.begin(stream)
            if ended:
                self._calls.receive(stream, b"", ended=True)

    def _refuse(self, stream_id: int, why: str, *, ended: bool) -> None:
        """Ends a call whose headers are too large, `why` says it, or (empty) are not HTTP."""
        if not why:
            self._sender.write(http2.reset(stream_id, Code.PROTOCOL_ERROR))
            return
        block = only_status_block(grpc.StatusCode.RESOURCE_EXHAUSTED, f"{why}; send fewer metadata")
        self._sender.whole_block(stream_id, block)
        if not ended:
            self._sender.write(http2.reset(stream_id, Code.NO_ERROR))

    def _read_reset(self, stream_id: int, _: int, payload: bytes) -> None:
        http2.number(payload, "RST_STREAM")
        self._must_be_known(stream_id)
        stream = self._streams.pop(stream_id, None)
        if stream is not None:
            self._calls.drop(stream)
            self._gone()
            self._hurry()

    def _read_settings(self, stream_id: int, flags: int, payload: bytes) -> None:
        self._configured = True
        if stream_id:
            raise ConnectionFault(Code.PROTOCOL_ERROR, "SETTINGS on a stream")
        if flags & Flag.ACK:
            if payload:
                raise ConnectionFault(Code.FRAME_SIZE_ERROR, "an acknowledgement of SETTINGS that holds something")
            return
        self._hurry(SETTINGS_RUSH)
        window = self._client_window
        for name, value in http2.read_settings(payload):
            if name == Setting.INITIAL_WINDOW_SIZE:
                window = value
            elif name == Setting.MAX_FRAME_SIZE:
                self._sender.frame_bytes = min(value, MAX_FRAME_BYTES)
        self._sender.write(http2.frame(Kind.SETTINGS, Flag.ACK, 0))
        if window != self._client_window:
            change, self._client_window = window - self._client_window, window
            self._sender.shift(self._streams.values(), change)

    def _read_ping(self, stream_id: int, flags: int, payload: bytes) -> None:
        if stream_id:
            raise ConnectionFault(Code.PROTOCOL_ERROR, "PING on a stream")
        if len(payload) != 8:
            raise ConnectionFault(Code.FRAME_SIZE_ERROR, f"a PING frame of {len(payload)} bytes")
        if not flags & Flag.ACK:
            self._hurry()
            self._sender.write(http2.frame(Kind.PING, Flag.ACK, 0, payload))
        elif payload == _GOING and self._leaving_at and not self._left_at:
            self._say_goodbye()

    def _read_goaway(self, stream_id: int, _: int, __: bytes) -> None:
        if stream_id:
            raise ConnectionFault(Code.PROTOCOL_ERROR, "GOAWAY on a stream")
        self.leave()

    def _read_window_update(self, stream_id: int, _: int, payload: bytes) -> None:
        size = http2.number(payload, "WINDOW_UPDATE") & http2.MAX_WINDOW
        if not stream_id:
            if not size:
                raise ConnectionFault(Code.PROTOCOL_ERROR, "a WINDOW_UPDATE of nothing")
            self._sender.widen(size)
            return
        self._must_be_known(stream_id)
        stream = self._streams.get(stream_id)
        if stream is None:
            return
        if not size:
            self._reset(stream, Code.PROTOCOL_ERROR)
        elif not self._sender.widen_stream(stream, size):
            self._reset(stream, Code.FLOW_CONTROL_ERROR)

    def _read_priority(self, stream_id: int, _: int, payload: bytes) -> None:
        if not stream_id or len(payload) != 5:
            raise ConnectionFault(Code.PROTOCOL_ERROR, "a PRIORITY frame that says nothing")
        self._hurry()

    def _refuse_push(self, _: int, __: int, ___: bytes) -> None:
        raise ConnectionFault(Code.PROTOCOL_ERROR, "a client pushes nothing")

    def _must_be_known(self, stream_id: int) -> None:
        """Frames of streams that are over may still come; those of streams that never began may not."""
        if stream_id == 0 or (stream_id > self._last_stream and not self._left_at):
            raise ConnectionFault(Code.PROTOCOL_ERROR, f"a frame of stream {stream_id}, which has not begun")

    def _reset(self, stream: Stream, code: Code) -> None:
        del self._streams[stream.id]
        self._calls.drop(stream)
        self._sender.write(http2.reset(stream.id, code))
        self._gone()

    def _answered(self, stream: Stream) -> None:
        """The sender has written all of a call's answer."""
        if self._streams.pop(stream.id, None) is None:
            return
        if not stream.ended:
            self._sender.write(http2.reset(stream.id, Code.NO_ERROR))
        self._calls.over(stream)
        self._gone()

    def _gone(self) -> None:
        if not self._streams:
            self._busy_at = monotonic()
            if self._left_at:
                self._left_at = self._busy_at

    def _say_goodbye(self) -> None:
        """What the client sends from here on was never begun: it may call again elsewhere."""
        self._left_at = monotonic()
        self._sender.write(http2.goaway(self._last_stream, Code.NO_ERROR))


def _read_head(headers: tuple[Header, ...]) -> Head | None:
    return read_head(headers) if http2.well_formed(headers) else None


_READERS: Final = {
    int(Kind.DATA): Connection._read_data,
    int(Kind.HEADERS): Connection._read_headers,
    int(Kind.PRIORITY): Connection._read_priority,
    int(Kind.RST_STREAM): Connection._read_reset,
    int(Kind.SETTINGS): Connection._read_settings,
    int(Kind.PUSH_PROMISE): Connection._refuse_push,
    int(Kind.PING): Connection._read_ping,
    int(Kind.GOAWAY): Connection._read_goaway,
    int(Kind.WINDOW_UPDATE): Connection._read_window_update,
    int(Kind.CONTINUATION): Connection._read_continuation,
}
