"""gRPC on one connection: begins a call when its request is whole, and ends it with an answer or a status."""

import asyncio
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from functools import partial
from typing import Final

import grpc

from gateway.errors import quoted, status_of
from gateway.http2.call import (
    Methods,
    Streaming,
    Unary,
    only_status_block,
    refusal_block,
    unwrapped,
    unwrapped_if_small,
)
from gateway.http2.sender import Sender
from gateway.http2.stream import PIECE_BYTES, Stream
from gateway.settings import ServerLimits
from worker.errors import (
    DeadlineExceeded,
    Internal,
    InvalidRequest,
    Overloaded,
    ShardlineError,
    Unavailable,
    Unsupported,
)
from worker.http2.status import status_block

PACKED_HERE_BYTES: Final = 64 << 10
UNPACKED_HERE_BYTES: Final = 256 << 10
"""A compressed message over the first, or one that unpacks to more than the second, is unpacked in a thread."""

SHUTTING_DOWN: Final = "the server is shutting down"


class Desk:
    """What all connections of a process share: the methods, the bounds, and what counts against them.

    calls: of one message, begun and not answered. arriving: calls whose requests are not whole yet, and
    streaming calls. receiving: bytes of requests that are not whole yet, or not begun.

    A connection may take no more of `arriving` and `receiving` than it leaves free, so one that begins requests and
    does not end them, or several, cannot shut the others out.
    """

    def __init__(self, methods: Methods, limits: ServerLimits) -> None:
        self.methods = methods
        self.limits = limits
        self.calls = 0
        self.arriving = 0
        self.receiving = 0
        self.unpacking = ThreadPoolExecutor(1, "unpacking")

    def close(self) -> None:
        self.unpacking.shutdown(wait=False, cancel_futures=True)


class Calls:
    """The calls of one connection."""

    def __init__(self, desk: Desk, sender: Sender) -> None:
        self._desk = desk
        self._sender = sender
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._arriving = 0
        self._receiving = 0
        self._ended = False

    @property
    def running(self) -> int:
        """Handlers that have not returned, those of cancelled calls among them."""
        return len(self._tasks)

    def begin(self, stream: Stream) -> None:
        """Headers came."""
        desk = self._desk
        desk.arriving += 1
        self._arriving += 1
        head = stream.head
        if self._ended:
            self._fail(stream, Unavailable(SHUTTING_DOWN))
        elif head.fault:
            self._sender.end(stream, refusal_block(head, status_of(InvalidRequest(head.fault))[0]))
        elif desk.arriving + self._arriving > desk.limits.max_arriving + 1:
            self._fail(stream, Overloaded("this server is receiving as many calls as it may; try again later"))
        elif head.path in desk.methods.streaming:
            self._start(stream, self._stream(stream, desk.methods.streaming[head.path]))
        elif head.path not in desk.methods.unary:
            self._fail(stream, Unsupported(f"this server has no call {quoted(head.path)}"))
        elif desk.calls >= desk.limits.max_calls:
            self._fail(stream, _full(desk.limits))

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
                self._count(stream, len(data) + PIECE_BYTES)
                stream.take(data, desk.limits.max_message_bytes)
        except ShardlineError as error:
            self._fail(stream, error)
            return
        if not ended:
            return
        if desk.calls >= desk.limits.max_calls:
            self._fail(stream, _full(desk.limits))
            return
        desk.arriving -= 1
        self._arriving -= 1
        desk.calls += 1
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
        if stream.task is not None and stream.head.path in self._desk.methods.unary:
            self._desk.calls -= 1
        else:
            self._desk.arriving -= 1
            self._arriving -= 1
        self._free(stream)

    def expire(self, stream: Stream) -> None:
        """The request has been arriving for too long."""
        self._fail(stream, DeadlineExceeded("the request did not arrive in time"))

    async def end_all(self, streams: list[Stream]) -> None:
        """Ends every call with `Unavailable`, begins no more, and returns when their handlers have."""
        self._ended = True
        for stream in streams:
            if not stream.tail:
                self._fail(stream, Unavailable(SHUTTING_DOWN))
        await self.until_returned()

    async def until_returned(self) -> None:
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _start(self, stream: Stream, work: Coroutine[None, None, None]) -> None:
        stream.task = self._loop.create_task(work)
        self._tasks.add(stream.task)
        stream.task.add_done_callback(partial(self._returned, stream))

    def _returned(self, stream: Stream, task: asyncio.Task[None]) -> None:
        """However a handler ended, its call is answered."""
        self._tasks.discard(task)
        if stream.tail or stream.closed:
            return
        if task.cancelled():
            self._fail(stream, Unavailable("the call was cancelled in the server; try again"))
        else:
            self._fail(stream, Internal("the call ended in the server without an answer"))

    async def _answer(self, stream: Stream, call: Unary) -> None:
        try:
            message = await self._message(stream)
            answer = await call(message, stream)
            if not stream.tail and not stream.closed:
                self._sender.answer(stream, answer)
        except Exception as error:  # noqa: BLE001 - the client is told of every one
            self._fail(stream, error)

    async def _message(self, stream: Stream) -> bytes:
        """The call's message. It counts as being received until the handler, which parses it at once, has it."""
        wrapped = stream.taken()
        most = self._desk.limits.max_message_bytes
        message = None
        if not wrapped or not wrapped[0]:
            message = unwrapped(wrapped, stream.head, most)
        elif len(wrapped) <= PACKED_HERE_BYTES:
            message = unwrapped_if_small(wrapped, stream.head, most, UNPACKED_HERE_BYTES)
        if message is None:
            message = await self._unwrapped_in_thread(stream, wrapped)
        self._free(stream)
        return message

    async def _unwrapped_in_thread(self, stream: Stream, wrapped: bytes) -> bytes:
        """One message of the process at a time, so that what is unpacked does not pile up."""
        desk = self._desk
        remaining = stream.time_remaining()
        longest = desk.limits.receive_s if remaining is None else min(remaining, desk.limits.receive_s)
        try:
            async with asyncio.timeout(longest):
                message = await self._loop.run_in_executor(
                    desk.unpacking, unwrapped, wrapped, stream.head, desk.limits.max_message_bytes
                )
        except TimeoutError as error:
            raise DeadlineExceeded("the request's message was not unpacked in time") from error
        if not stream.closed:
            self._count(stream, len(message))
        return message

    async def _stream(self, stream: Stream, call: Streaming) -> None:
        deadline = asyncio.timeout(stream.time_remaining())
        try:
            async with deadline, aclosing(call(stream.messages(), stream)) as answers:
                async for answer in answers:
                    self._sender.message(stream, answer)
                    await self._sender.until_sent(stream)
        except Exception as error:  # noqa: BLE001 - the client is told of every one
            late = isinstance(error, TimeoutError) and deadline.expired()
            self._fail(stream, DeadlineExceeded("the call's deadline passed") if late else error)
        else:
            self._end(stream, grpc.StatusCode.OK, "")

    def _receive_streaming(self, stream: Stream, data: bytes) -> None:
        if data:
            stream.take_messages(data)
        elif stream.ended:
            stream.wake()
        if stream.ended and any(stream.parts):
            raise InvalidRequest("the call ended inside a message")

    def _fail(self, stream: Stream, error: Exception) -> None:
        if stream.task is not None and stream.task is not asyncio.current_task():
            stream.task.cancel()
        self._end(stream, *status_of(error))

    def _end(self, stream: Stream, status: grpc.StatusCode, message: str) -> None:
        if not stream.tail and not stream.closed:
            block = status_block if stream.begun_answer else only_status_block
            self._sender.end(stream, block(status, message))

    def _count(self, stream: Stream, size: int) -> None:
        stream.counted += size
        self._receiving += size
        self._desk.receiving += size
        if self._desk.receiving + self._receiving > self._desk.limits.max_receiving_bytes:
            raise Overloaded("this server is receiving as many bytes as it may; try again later")

    def _free(self, stream: Stream) -> None:
        self._desk.receiving -= stream.counted
        self._receiving -= stream.counted
        stream.counted = 0


def _full(limits: ServerLimits) -> Overloaded:
    return Overloaded(f"this server holds {limits.max_calls} calls already; try again later")
