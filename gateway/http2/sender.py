"""The writing side of a connection: answers go out as fast as the client's windows and its socket let them.

All that is written in one turn of the event loop leaves together. A small answer is one write of three frames; one that
does not fit its window waits here, a piece at a time, in turn with the others that wait. Those that the client's own
window of a stream holds back stand aside until it widens, so that no frame costs more for their number.
"""

import asyncio
from collections.abc import Callable, Iterable
from time import monotonic
from typing import Final

from gateway.http2.call import PREFIX_BYTES, wrap
from gateway.http2.stream import Stream
from worker.errors import Overloaded
from worker.http2.frames import (
    DEFAULT_FRAME_BYTES,
    DEFAULT_WINDOW,
    MAX_WINDOW,
    Code,
    ConnectionFault,
    Flag,
    Kind,
    frame_header,
    reset,
)
from worker.http2.hpack import EMPTY_TABLE
from worker.http2.status import OK_HEADERS, OK_TRAILERS

FLUSH_BYTES: Final = 256 << 10
"""So much is handed to the socket at once, without waiting for the end of the turn."""

JOIN_BYTES: Final = 64 << 10
"""Up to here one joined write is cheaper than several."""

MAX_FRAME_BYTES: Final = 64 << 10
"""Of one DATA frame, however large a client allows: answers take turns, and one frame is one turn."""

MAX_UNSENT_BYTES: Final = 8 << 20
"""Of small frames that a client makes us write and does not read; then its connection ends."""

MAX_WAITING_BYTES: Final = 256 << 20
"""Of answers on one connection that wait to be sent; beyond it, only one that finds none of them waiting may wait."""

_HEADERS: Final = int(Kind.HEADERS)
_DATA: Final = int(Kind.DATA)
_END: Final = Flag.END_STREAM
_WHOLE: Final = Flag.END_HEADERS


class Sender:
    """`finished` is told of a stream once all of its answer is written.

    A stream is in `_sendable` while it has something to send and its own window lets it.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        finished: Callable[[Stream], None],
        max_waiting_bytes: int = MAX_WAITING_BYTES,
    ) -> None:
        self.frame_bytes = DEFAULT_FRAME_BYTES
        self._transport = transport
        self._finished = finished
        self._max_waiting_bytes = max_waiting_bytes
        self._waiting_bytes = 0
        self._unread_bytes = 0
        self._loop = asyncio.get_running_loop()
        self._out: list[bytes | memoryview] = []
        self._out_bytes = 0
        self._window = DEFAULT_WINDOW
        self._sendable: dict[int, Stream] = {}
        self._paused = False
        self._first_block = EMPTY_TABLE
        self._watched: list[tuple[Callable[[float], None], float]] = []

    def write(self, data: bytes | memoryview) -> None:
        """Whole frames that no window bounds."""
        if self._paused:
            self._unread_bytes += len(data)
            if self._unread_bytes > MAX_UNSENT_BYTES:
                self._transport.abort()
        self._put(data)

    def _put(self, data: bytes | memoryview) -> None:
        if not self._out:
            self._loop.call_soon(self.flush)
        self._out.append(data)
        self._out_bytes += len(data)
        if self._out_bytes > FLUSH_BYTES:
            self.flush()

    def flush(self) -> None:
        out, self._out = self._out, []
        size, self._out_bytes = self._out_bytes, 0
        watched, self._watched = self._watched, []
        if not out or self._transport.is_closing():
            return
        if size <= JOIN_BYTES:
            self._transport.write(out[0] if len(out) == 1 else b"".join(out))
        else:
            self._transport.writelines(out)
        now = monotonic() if watched else 0.0
        for told, heard_at in watched:
            told(now - heard_at)

    def answer(self, stream: Stream, message: bytes) -> None:
        """The whole answer of a call that succeeded. Raises as `message` does."""
        size = len(message) + 5
        if self._sendable or self._paused or size > min(self._window, stream.window, self.frame_bytes):
            self.message(stream, message)
            self.end(stream, OK_TRAILERS)
            return
        self._window -= size
        block = self._first_block + OK_HEADERS if self._first_block else OK_HEADERS
        self._first_block = b""
        self._put(
            b"".join(
                (
                    frame_header(len(block), _HEADERS, _WHOLE, stream.id),
                    block,
                    frame_header(size, _DATA, 0, stream.id),
                    wrap(message),
                    message,
                    frame_header(len(OK_TRAILERS), _HEADERS, _WHOLE | _END, stream.id),
                    OK_TRAILERS,
                )
            )
        )
        self._finished(stream)

    def message(self, stream: Stream, message: bytes) -> None:
        """One message of a call; before its end may come more. Raises `Overloaded` where too much waits already."""
        size = len(message) + PREFIX_BYTES
        if self._waiting_bytes and self._waiting_bytes + size > self._max_waiting_bytes:
            raise Overloaded(
                f"{self._waiting_bytes} bytes of answers wait on this connection, and this one's {size} are too many "
                "more; ask for less at once, or on several connections"
            )
        if not stream.begun_answer:
            stream.begun_answer = True
            self._write_block(stream.id, OK_HEADERS, _WHOLE)
        stream.pending.append(wrap(message))
        if message:
            stream.pending.append(memoryview(message))
        self._waiting_bytes += size
        stream.moved_at = monotonic()
        if stream.window > 0:
            self._sendable[stream.id] = stream
            self._pump()

    def end(self, stream: Stream, block: bytes) -> None:
        """Trailers, after all messages; or headers and trailers in one, where there was no message."""
        stream.tail = block
        if not stream.pending:
            self._write_tail(stream)

    def whole_block(self, stream_id: int, block: bytes) -> None:
        """Headers that end a stream."""
        self._write_block(stream_id, block, _WHOLE | _END)

    def reset(self, stream: Stream, code: Code) -> None:
        self.forget(stream)
        self.write(reset(stream.id, code))

    def forget(self, stream: Stream) -> None:
        """Sends nothing more on it."""
        self._sendable.pop(stream.id, None)
        self._waiting_bytes -= sum(map(len, stream.pending))
        stream.pending.clear()
        self._sent_all(stream)

    async def until_sent(self, stream: Stream) -> None:
        """Returns when nothing of the stream waits here."""
        while stream.pending:
            stream.sent_all = self._loop.create_future()
            await stream.sent_all

    def widen(self, size: int) -> None:
        """The client lets us send `size` bytes more on the connection. Raises `ConnectionFault`."""
        self._window = _widened(self._window, size)
        self._pump()

    def widen_stream(self, stream: Stream, size: int) -> bool:
        """The client lets us send `size` bytes more on a stream; False: more than there may be."""
        if stream.window + size > MAX_WINDOW:
            return False
        stream.window += size
        if stream.pending and stream.window > 0:
            self._sendable[stream.id] = stream
            self._pump()
        return True

    def shift(self, streams: Iterable[Stream], change: int) -> None:
        """All streams' windows change, by so many bytes more or (negative) less. Raises `ConnectionFault`."""
        for stream in streams:
            stream.window = _widened(stream.window, change)
            if stream.window <= 0:
                self._sendable.pop(stream.id, None)
            elif stream.pending:
                self._sendable[stream.id] = stream
        self._pump()

    def pause(self) -> None:
        self._paused = True

    def resume(self) -> None:
        self._paused = False
        self._unread_bytes = 0
        self._pump()

    def _pump(self) -> None:
        """A piece of each answer that may be sent, in turn, while the connection takes any."""
        while self._sendable and self._window > 0 and not self._paused:
            stream = next(iter(self._sendable.values()))
            del self._sendable[stream.id]
            self._send_piece(stream)
            if stream.pending and stream.window > 0:
                self._sendable[stream.id] = stream

    def _send_piece(self, stream: Stream) -> None:
        room = min(self._window, stream.window, self.frame_bytes)
        pieces: list[bytes | memoryview] = []
        size = 0
        while stream.pending and size < room:
            piece = stream.pending.popleft()
            if len(piece) > room - size:
                stream.pending.appendleft(piece[room - size :])
                piece = piece[: room - size]
            pieces.append(piece)
            size += len(piece)
        self._window -= size
        self._waiting_bytes -= size
        stream.window -= size
        stream.moved_at = monotonic()
        self._put(frame_header(size, _DATA, 0, stream.id))
        for piece in pieces:
            self._put(piece)
        if not stream.pending:
            self._sent_all(stream)
            if stream.tail:
                self._write_tail(stream)

    def _sent_all(self, stream: Stream) -> None:
        if stream.sent_all is not None and not stream.sent_all.done():
            stream.sent_all.set_result(None)

    def _write_tail(self, stream: Stream) -> None:
        if stream.written is not None:
            self._watched.append((stream.written, stream.heard_at))
        self.whole_block(stream.id, stream.tail)
        self._finished(stream)

    def _write_block(self, stream_id: int, block: bytes, flags: int) -> None:
        block = self._first_block + block
        self._first_block = b""
        self.write(frame_header(len(block), _HEADERS, flags, stream_id) + block)


def _widened(window: int, size: int) -> int:
    if window + size > MAX_WINDOW:
        raise ConnectionFault(Code.FLOW_CONTROL_ERROR, "a window of 2 GiB or more")
    return window + size
