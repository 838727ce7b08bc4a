"""A worker's door: takes frames from holders of the cluster's token and answers each on the stream it came by."""

import asyncio
import contextlib
import hmac
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from time import monotonic
from typing import Final

import grpc

from worker.channel import at
from worker.errors import Internal, Overloaded, ShardlineError, Unavailable
from worker.frames import (
    MAX_MESSAGE_BYTES,
    METHOD,
    FrameError,
    IncomingCancel,
    IncomingRequest,
    Unpacker,
    error_frame,
    reply_frame,
)
from worker.http2.accept import Accepted
from worker.http2.duplex import Ended, Keepalive
from worker.http2.listen import Listener, Refusal
from worker.nouns import Answer, Load, Work
from worker.sparing_log import SparingLog
from worker.stream_writer import StreamWriter, first_to_end

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StreamServerLimits:
    """Bounds of what callers can make a worker hold.

    max_frames: requests in work per stream; more are answered `Overloaded`.
    max_partial_bytes: bytes of requests that are still arriving, per stream.
    tell_load_s: a stream on which nothing is sent still learns the load this often, seconds.
    """

    max_frames: int = 4096
    max_partial_bytes: int = (1 << 31) - 1
    tell_load_s: float = 1.0


class StreamServer:
    """Serves `shardline.v1.Worker` on a port of its own.

    `serve` computes one request; it is cancelled when its caller cancels or goes away. It may raise `ShardlineError`s,
    which the caller is told; anything else is logged and told as `Internal`. `load` is asked for with every message.
    """

    def __init__(
        self,
        token: str,
        serve: Callable[[Work], Awaitable[Answer]],
        load: Callable[[], Load],
        limits: StreamServerLimits | None = None,
    ) -> None:
        self._token = token.encode()
        self._serve = serve
        self._load = load
        self._limits = limits or StreamServerLimits()
        self._draining = False
        self._less_owed = asyncio.Event()
        self._streams: set[_Stream] = set()
        self._strangers: set[str] = set()
        self._failures = SparingLog(logger, "a request failed")
        self._listener = Listener(self._refusal, self._run, max_message_bytes=MAX_MESSAGE_BYTES, keepalive=_KEEPALIVE)

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> str:
        """Listens and returns `host:port`. Raises OSError where the address cannot be had."""
        return at(host, await self._listener.listen(host, port))

    @property
    def owed(self) -> int:
        """Requests taken and not yet answered; a stream with anything left to write counts for one."""
        return sum(stream.owed for stream in self._streams)

    async def drain(self, timeout_s: float) -> bool:
        """Gives every new request back uncomputed from now on, tells callers so, and answers what it has.

        False where something was still owed after `timeout_s` seconds.
        """
        self._draining = True
        for stream in self._streams:
            stream.writer.tell_load()
        try:
            async with asyncio.timeout(timeout_s):
                while self.owed:
                    self._less_owed.clear()
                    await self._less_owed.wait()
        except TimeoutError:
            return False
        return True

    async def flush(self, timeout_s: float) -> None:
        """Returns when all that is answered was written, or after `timeout_s` seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while not all(stream.writer.idle for stream in self._streams):
                    self._less_owed.clear()
                    await self._less_owed.wait()

    async def stop(self, grace_s: float = 1.0) -> None:
        """Closes the port and every stream; what has not ended by itself within `grace_s` seconds is cancelled."""
        for stream in self._streams:
            stream.closing.set()
        await self._listener.close(grace_s)

    def _current_load(self) -> Load:
        load = self._load()
        return replace(load, draining=True) if self._draining else load

    def _refusal(self, call: Accepted) -> Refusal | None:
        if not hmac.compare_digest(call.metadata.get("authorization", "").encode(), b"Bearer " + self._token):
            self._log_stranger(call.peer)
            return grpc.StatusCode.UNAUTHENTICATED, "this port takes frames from the cluster only"
        if call.method != METHOD:
            return grpc.StatusCode.UNIMPLEMENTED, f"there is no {call.method[:100]}; there is {METHOD}"
        return None

    async def _run(self, call: Accepted) -> None:
        stream = _Stream(
            call,
            self._limits,
            serve=self._serve,
            draining=lambda: self._draining,
            load=self._current_load,
            less_owed=self._less_owed.set,
            failures=self._failures,
        )
        self._streams.add(stream)
        ended = grpc.StatusCode.UNAVAILABLE, "the stream was cut"
        try:
            await stream.run()
            ended = grpc.StatusCode.OK, ""
        except FrameError as error:
            logger.warning("closing the stream of %s: %s", call.peer, error)
            ended = grpc.StatusCode.INVALID_ARGUMENT, str(error)
        except Exception as error:  # noqa: BLE001 - the caller is told, and the log
            self._failures.failed(error)
            ended = grpc.StatusCode.INTERNAL, "the worker failed on this stream; its log says why"
        finally:
            self._streams.discard(stream)
            self._less_owed.set()
            call.finish(*ended)

    def _log_stranger(self, peer: str) -> None:
        host = peer.rsplit(":", 1)[0]
        if host not in self._strangers and len(self._strangers) < 1024:
            self._strangers.add(host)
            logger.warning("refused %s: it does not hold the cluster's token (said once)", host)


class _Stream:
    """One caller's stream, from its first message to its end."""

    def __init__(
        self,
        call: Accepted,
        limits: StreamServerLimits,
        *,
        serve: Callable[[Work], Awaitable[Answer]],
        draining: Callable[[], bool],
        load: Callable[[], Load],
        less_owed: Callable[[], None],
        failures: SparingLog,
    ) -> None:
        self._call = call
        self._serve = serve
        self._draining = draining
        self._limits = limits
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._less_owed = less_owed
        self._failures = failures
        self.writer = StreamWriter(call.write, load, lambda: len(self._tasks) + self.writer.waiting, written=less_owed)
        self.closing = asyncio.Event()

    @property
    def owed(self) -> int:
        return len(self._tasks) + (not self.writer.idle)

    async def run(self) -> None:
        """Returns when the caller is gone; what it waited for is cancelled then."""
        self.writer.tell_load()
        try:
            with contextlib.suppress(Ended):
                await first_to_end(self._read(), self.writer.run(), self._tell_load_often(), self._closed())
        finally:
            tasks = list(self._tasks.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _closed(self) -> None:
        await self.closing.wait()

    async def _tell_load_often(self) -> None:
        while True:
            await asyncio.sleep(self._limits.tell_load_s)
            self.writer.tell_load()

    async def _read(self) -> None:
        unpacker = Unpacker(self._limits.max_partial_bytes)
        while True:
            for incoming in unpacker.feed(await self._call.read()):
                if isinstance(incoming, IncomingRequest):
                    self._begin(incoming)
                elif isinstance(incoming, IncomingCancel):
                    self._cancel(incoming.id)
                else:
                    raise FrameError("a caller sends requests and cancels only")

    def _begin(self, request: IncomingRequest) -> None:
        if self._draining():
            self.writer.send(error_frame(request.id, Unavailable("the replica is draining"), retriable=True))
            return
        if request.id in self._tasks:
            raise FrameError(f"request {request.id} is already in work")
        if len(self._tasks) >= self._limits.max_frames:
            error = Overloaded(f"{self._limits.max_frames} requests are in work on this stream")
            self.writer.send(error_frame(request.id, error))
            return
        work = Work(request.tensors, monotonic() + request.remaining_s, request.priority, request.traceparent)
        task = asyncio.create_task(self._answer(request.id, work))
        self._tasks[request.id] = task
        task.add_done_callback(lambda _: self._ended(request.id))

    def _ended(self, request_id: int) -> None:
        del self._tasks[request_id]
        self._less_owed()

    def _cancel(self, request_id: int) -> None:
        task = self._tasks.get(request_id)
        if task is not None:
            task.cancel()
        self.writer.discard(request_id)

    async def _answer(self, request_id: int, work: Work) -> None:
        try:
            frame = reply_frame(request_id, await self._serve(work))
        except ShardlineError as error:
            frame = error_frame(request_id, error)
        except Exception as error:  # noqa: BLE001 - the caller is told, and the log
            self._failures.failed(error)
            frame = error_frame(request_id, Internal("the worker failed on this request; its log says why"))
        self.writer.send(frame)


_KEEPALIVE: Final = Keepalive(after_s=5.0, timeout_s=5.0)
