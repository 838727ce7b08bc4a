"""One long-lived stream to one replica: connects, authenticates, numbers the requests and matches the replies.

When the connection is lost, everything outstanding fails at once with `Lost`, and the stream connects again, with a
growing pause, until it is closed.
"""

import asyncio
import itertools
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from worker.errors import DeadlineExceeded
from worker.frames import (
    MAX_MESSAGE_BYTES,
    METHOD,
    FrameError,
    Incoming,
    IncomingReply,
    Unpacker,
    cancel_frame,
    request_frame,
)
from worker.http2.dial import Dialled, dial
from worker.http2.duplex import Ended, Keepalive
from worker.nouns import Answer, Work
from worker.standing import Standing
from worker.stream_writer import StreamWriter, first_to_end

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StreamTimings:
    """Seconds.

    keepalive_s: a silent connection is probed this often.
    keepalive_timeout_s: an unanswered probe ends the connection after this; with `keepalive_s` it bounds how long a
        frozen replica goes unnoticed.
    connect_s: longest wait for a connection and the replica's first message.
    retry_min_s, retry_max_s: pause before the first and before every later new connection.
    """

    keepalive_s: float = 1.0
    keepalive_timeout_s: float = 2.0
    connect_s: float = 5.0
    retry_min_s: float = 0.05
    retry_max_s: float = 1.0


class Lost(Exception):
    """The replica's connection ended while it owed the answer."""


class Refused(Exception):
    """The replica gave the request back uncomputed."""


@dataclass(slots=True)
class _Outstanding:
    """`sent`, `due`: when it was sent, and when its answer was expected then."""

    future: asyncio.Future[Answer]
    rows: int
    sent: float
    due: float


class ReplicaStream:
    """Belongs to the event loop it was made on; owns one task until `close` or `finish`."""

    def __init__(self, address: str, token: str, timings: StreamTimings, changed: Callable[[], None]) -> None:
        self.address = address
        self.ready = False
        self.standing = Standing(time.monotonic())
        self._token = token
        self._timings = timings
        self._changed = changed
        self._ids = itertools.count(1)
        self._outstanding: dict[int, _Outstanding] = {}
        self._draining = False
        self._writer: StreamWriter | None = None
        self._unpacker = Unpacker()
        self._idle = asyncio.Event()
        self._idle.set()
        self._task = asyncio.create_task(self._stay_connected(), name=f"stream to {address}")

    @property
    def inflight(self) -> int:
        return len(self._outstanding)

    def expected_wait(self, now: float) -> float:
        """Seconds, to compare replicas by: see `Standing.expected_wait`."""
        for oldest in self._outstanding.values():
            return self.standing.expected_wait(now, oldest.sent)
        return self.standing.expected_wait(now, now)

    async def call(self, work: Work) -> Answer:
        """Raises `Lost`, `Refused`, `DeadlineExceeded` or the replica's own `ShardlineError`."""
        if self._writer is None:
            raise Lost(f"no connection to {self.address}")
        remaining = work.remaining
        if remaining <= 0:
            raise DeadlineExceeded("the deadline passed before the request was sent")
        loop = asyncio.get_running_loop()
        frame_id = next(self._ids)
        outgoing = request_frame(frame_id, work)
        future: asyncio.Future[Answer] = loop.create_future()
        self._begin(frame_id, future, work.rows)
        timer = loop.call_later(remaining, _expire, future)
        try:
            self._writer.send(outgoing)
            return await future
        except (asyncio.CancelledError, DeadlineExceeded):
            self._give_up(frame_id)
            raise
        finally:
            timer.cancel()
            self._end(frame_id)

    async def finish(self) -> None:
        """Takes nothing new, waits for what is outstanding (each has a deadline), and closes."""
        self.ready = False
        try:
            await self._idle.wait()
        finally:
            await self.close()

    async def close(self) -> None:
        """Ends the connection; what is outstanding fails with `Lost`."""
        self.ready = False
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._disconnected("the link was closed", logging.DEBUG)

    def _begin(self, frame_id: int, future: asyncio.Future[Answer], rows: int) -> None:
        now = time.monotonic()
        self._outstanding[frame_id] = _Outstanding(future, rows, now, self.standing.sent(rows, now))
        self._idle.clear()

    def _end(self, frame_id: int) -> None:
        outstanding = self._outstanding.pop(frame_id, None)
        if outstanding is None:
            return
        self.standing.ended(outstanding.rows)
        if not self._outstanding:
            self._idle.set()
        self._changed()

    def _give_up(self, frame_id: int) -> None:
        """Tells the replica that nobody waits; unless it has just answered or is gone."""
        if frame_id in self._outstanding and self._writer is not None:
            self._writer.discard(frame_id)
            self._unpacker.forget(frame_id)
            self._writer.send(cancel_frame(frame_id))

    async def _stay_connected(self) -> None:
        pause = self._timings.retry_min_s
        while True:
            connected_at = time.monotonic()
            reason = await self._connect_and_read()
            self._disconnected(reason)
            if time.monotonic() - connected_at > self._timings.connect_s:
                pause = self._timings.retry_min_s
            await asyncio.sleep(pause)
            pause = min(2 * pause, self._timings.retry_max_s)

    async def _connect_and_read(self) -> str:
        """Serves one connection to its end and returns why it ended."""
        call: Dialled | None = None
        try:
            async with asyncio.timeout(self._timings.connect_s):
                call = await self._dial()
                self._unpacker = Unpacker(wanted=self._outstanding.__contains__)
                self._receive(await call.read())
            writer = StreamWriter(call.write, lambda: None, lambda: len(self._outstanding))
            self._writer = writer
            self._set_ready(not self._draining)
            await first_to_end(self._read(call), writer.run())
        except TimeoutError:
            return "no connection in time"
        except (OSError, ValueError, Ended, FrameError) as error:  # ValueError: not an address
            return str(error)
        finally:
            if call is not None:
                call.close()
        return "the stream ended"

    async def _dial(self) -> Dialled:
        timings = self._timings
        return await dial(
            self.address,
            METHOD,
            (("authorization", f"Bearer {self._token}"),),
            max_message_bytes=MAX_MESSAGE_BYTES,
            keepalive=Keepalive(timings.keepalive_s, timings.keepalive_timeout_s),
        )

    async def _read(self, call: Dialled) -> None:
        while True:
            self._receive(await call.read())

    def _receive(self, message: bytes) -> None:
        incoming = self._unpacker.feed(message)
        load = self._unpacker.load
        now = time.monotonic()
        for one in incoming:
            self._answered(one, now)
        if load is not None:
            self._unpacker.load = None
            self.standing.told(load, now)
            self._draining = load.draining
            if load.draining and self.ready:
                self._set_ready(False)

    def _answered(self, incoming: Incoming, now: float) -> None:
        if not isinstance(incoming, IncomingReply):
            raise FrameError("a replica sends replies only")
        outstanding = self._outstanding.get(incoming.id)
        if outstanding is None or outstanding.future.done():
            return
        if incoming.error is None:
            self.standing.answered(outstanding.due, now)
            outstanding.future.set_result(incoming.answer)
        elif incoming.retriable:
            self._set_ready(False)
            outstanding.future.set_exception(Refused(str(incoming.error)))
        else:
            outstanding.future.set_exception(incoming.error)

    def _set_ready(self, ready: bool) -> None:
        self.ready = ready
        self._changed()

    def _disconnected(self, reason: str, level: int = logging.WARNING) -> None:
        if self._writer is not None:
            logger.log(level, "lost %s: %s; %d requests outstanding", self.address, reason, len(self._outstanding))
        self._writer = None
        for outstanding in self._outstanding.values():
            if not outstanding.future.done():
                outstanding.future.set_exception(Lost(f"{self.address}: {reason}"))
        self._set_ready(False)


def _expire(future: asyncio.Future[Answer]) -> None:
    if not future.done():
        future.set_exception(DeadlineExceeded("the deadline passed while a replica had the request"))
