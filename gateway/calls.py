"""gRPC on one connection: begins a call when its request is whole, and ends it with an answer or a status."""

import asyncio
from collections.abc import Coroutine
from contextlib import aclosing
from typing import Final

import grpc

from gateway.call import (
    Methods,
    Streaming,
    Unary,
    only_status_block,
    status_block,
    unwrapped,
)
from gateway.errors import quoted, status_of
from gateway.sender import Sender
from gateway.settings import ServerLimits
from gateway.stream import PIECE_BYTES, Stream
from worker.errors import DeadlineExceeded, InvalidRequest, Overloaded, ShardlineError, Unavailable, Unsupported

UNPACK_HERE_BYTES: Final = 64 << 10
"""A compressed message over this is unpacked in a thread."""


class Desk:
    """What all connections of a process share: the methods, the bounds, and what counts against them.

    calls: begun and not answered. receiving: bytes of requests that are not whole yet, or not begun.
    """

    def __init__(self, methods: Methods, limits: ServerLimits) -> None:
        self.methods = methods
        self.limits = limits
        self.calls = 0
        self.receiving = 0


class Calls:
    """The calls of one connection."""

    def __init__(self, desk: Desk, sender: Sender) -> None:
        self._desk = desk
        self._sender = sender
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def running(self) -> int:
        """Handlers that have not returned, those of cancelled calls among them."""
        return len(self._tasks)

    def begin(self, stream: Stream) -> None:
        """Headers came."""
        desk = self._desk
        desk.calls += 1
        head = stream.head
        if head.fault:
            self._fail(stream, InvalidRequest(head.fault))
        elif desk.calls > desk.limits.max_calls:
            self._fail(stream, Overloaded(f"this server holds {desk.limits.max_calls} calls already; try again later"))
        elif head.path in desk.methods.streaming:
            self._start(stream, self._stream(stream, desk.methods.streaming[head.path]))
        elif head.path not in desk.methods.unary:
            self._fail(stream, Unsupported(f"this server has no call {quoted(head.path)}"))

    def receive(self, stream: Stream, data: bytes, *, ended: bool) -> None:
        """A piece of the request came, or its end."""
        stream.ended = ended
        if stream.tail:
            return  # it was refused; the client does not know yet
        desk = self._desk
        try:
            if stream.task is not None:
                self._receive_streaming(stream, data)
                return
            if data:
                stream.counted += len(data) + PIECE_BYTES
                desk.receiving += len(data) + PIECE_BYTES
                stream.take(data, desk.limits.max_message_bytes)
                if desk.receiving > desk.limits.max_receiving_bytes:
                    raise Overloaded("this server is receiving as many bytes as it may; try again later")
        except ShardlineError as error:
            self._fail(stream, error)
            return
        if ended:
            self._start(stream, self._answer(stream, desk.methods.unary[stream.head.path]))

    def drop(self, stream: Stream) -> None:
        """Nobody waits for the call any more."""
        self._sender.forget(stream)
        if stream.task is not None:
            stream.task.cancel()
        self.over(stream)

    def over(self, stream: Stream) -> None:
        """The stream is gone; what it counted for is free."""
        stream.closed = True
        self._desk.calls -= 1
        self._free(stream)

    def expire(self, stream: Stream) -> None:
        """The request has been arriving for too long."""
        self._fail(stream, DeadlineExceeded("the request did not arrive in time"))

    async def end_all(self, streams: list[Stream]) -> None:
        """Ends every call with `Unavailable`, and returns when their handlers have."""
        for stream in streams:
            if not stream.tail:
                self._fail(stream, Unavailable("the server is shutting down"))
        await self.until_returned()

    async def until_returned(self) -> None:
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _start(self, stream: Stream, work: Coroutine[None, None, None]) -> None:
        stream.task = self._loop.create_task(work)
        self._tasks.add(stream.task)
        stream.task.add_done_callback(self._tasks.discard)

    async def _answer(self, stream: Stream, call: Unary) -> None:
        try:
            message = await self._message(stream)
            answer = await call(message, stream)
        except Exception as error:  # noqa: BLE001 - the client is told of every one
            self._fail(stream, error)
        else:
            if not stream.tail and not stream.closed:
                self._sender.answer(stream, answer)

    async def _message(self, stream: Stream) -> bytes:
        wrapped = stream.taken()
        self._free(stream)
        most = self._desk.limits.max_message_bytes
        if len(wrapped) > UNPACK_HERE_BYTES and wrapped[0]:
            return await self._loop.run_in_executor(None, unwrapped, wrapped, stream.head, most)
        return unwrapped(wrapped, stream.head, most)

    async def _stream(self, stream: Stream, call: Streaming) -> None:
        try:
            async with asyncio.timeout(stream.time_remaining()), aclosing(call(stream.messages(), stream)) as answers:
                async for answer in answers:
                    self._sender.message(stream, answer)
                    await self._sender.until_sent(stream)
        except TimeoutError:
            self._fail(stream, DeadlineExceeded("the call's deadline passed"))
        except Exception as error:  # noqa: BLE001 - the client is told of every one
            self._fail(stream, error)
        else:
            self._end(stream, grpc.StatusCode.OK, "")

    def _receive_streaming(self, stream: Stream, data: bytes) -> None:
        if data:
            stream.take_messages(data)
        elif stream.ended:
            stream.wake()

    def _fail(self, stream: Stream, error: Exception) -> None:
        if stream.task is not None and stream.task is not asyncio.current_task():
            stream.task.cancel()
        self._end(stream, *status_of(error))

    def _end(self, stream: Stream, status: grpc.StatusCode, message: str) -> None:
        if not stream.tail and not stream.closed:
            block = status_block if stream.begun_answer else only_status_block
            self._sender.end(stream, block(status, message))

    def _free(self, stream: Stream) -> None:
        self._desk.receiving -= stream.counted
        stream.counted = 0
