"""The one piece of code that calls a worker: from the gateway to stage 0, and from a stage to the next.

A `Link` holds one stream to each replica, picks a replica by power of two choices (Mitzenmacher 2001) on the load that
replies carry back, bounds what is in flight, and sends what a dead replica still owed to a living one while the
deadline lasts.
"""

import asyncio
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from worker.errors import DeadlineExceeded, Overloaded, Unavailable
from worker.nouns import Answer, Work
from worker.replica_stream import Lost, Refused, ReplicaStream, StreamTimings


@dataclass(frozen=True, slots=True)
class LinkLimits:
    """Bounds of a link.

    max_inflight: requests outstanding at one replica.
    attempts: replicas that may die under one request before it is given up.
    patience_s: longest wait for a living replica where there is none; then `Unavailable`.
    """

    max_inflight: int = 64
    attempts: int = 3
    patience_s: float = 5.0
    timings: StreamTimings = field(default_factory=StreamTimings)


class Link:
    """Calls the replicas of one stage. Belongs to the event loop it is used on."""

    def __init__(self, token: str, limits: LinkLimits | None = None) -> None:
        self._token = token
        self._limits = limits or LinkLimits()
        self._streams: dict[str, ReplicaStream] = {}
        self._leaving: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._closed = False

    def route(self, replicas: Mapping[str, str]) -> None:
        """Calls these replicas (id to host:port) from now on. What is in flight at others is still waited for."""
        for replica, stream in list(self._streams.items()):
            if replicas.get(replica) != stream.address:
                del self._streams[replica]
                self._leave(stream)
        for replica, address in replicas.items():
            if replica not in self._streams:
                self._streams[replica] = ReplicaStream(address, self._token, self._limits.timings, self._wake)
        self._wake()

    async def call(self, work: Work, *, wait: bool = False) -> Answer:
        """Has `work` computed by one replica. To give it up, cancel the calling task.

        `wait` False: `Overloaded` at once where every living replica is at its bound; True: waits for room.
        Raises `DeadlineExceeded`, `Unavailable` (no living replica within `patience_s`, or `attempts` died under it),
        and whatever the replica answers.
        """
        lost = 0
        while True:
            stream = self._pick() or await self._wait_for_room(work, wait=wait)
            try:
                return await stream.call(work)
            except Refused:
                continue  # draining: it computed nothing, and is not picked again
            except Lost as error:
                lost += 1
                if lost >= self._limits.attempts:
                    raise Unavailable(f"{lost} replicas died while they had the request; the last: {error}") from error

    async def room(self) -> None:
        """Returns when some living replica has room for one more request."""
        while self._pick() is None:
            await self._next_change(None)

    async def close(self) -> None:
        """Closes every stream; what is in flight fails with `Unavailable`."""
        self._closed = True
        streams, self._streams = list(self._streams.values()), {}
        for task in self._leaving:
            task.cancel()
        await asyncio.gather(*(stream.close() for stream in streams), *self._leaving, return_exceptions=True)

    def _pick(self) -> ReplicaStream | None:
        open_to_work = [
            stream for stream in self._streams.values() if stream.ready and stream.inflight < self._limits.max_inflight
        ]
        if len(open_to_work) > 2:
            open_to_work = random.sample(open_to_work, 2)
        if len(open_to_work) == 2:
            now = time.monotonic()
            first, second = (stream.expected_wait(now) for stream in open_to_work)
            if first == second:
                return random.choice(open_to_work)
            return open_to_work[second < first]
        return open_to_work[0] if open_to_work else None

    async def _wait_for_room(self, work: Work, *, wait: bool) -> ReplicaStream:
        give_up = time.monotonic() + self._limits.patience_s
        while True:
            if self._closed:
                raise Unavailable("the link was closed")
            if any(stream.ready for stream in self._streams.values()):
                if not wait:
                    raise Overloaded("every replica has as many requests in flight as it may; try again later")
                until = work.deadline
            else:
                until = min(give_up, work.deadline)
            if time.monotonic() >= until:
                if until == work.deadline:
                    raise DeadlineExceeded("the deadline passed while the request waited for a replica")
                raise Unavailable(f"no replica answered within {self._limits.patience_s:g} s")
            await self._next_change(until)
            stream = self._pick()
            if stream is not None:
                return stream

    async def _next_change(self, until: float | None) -> None:
        changed = self._changed
        try:
            async with asyncio.timeout(None if until is None else max(0.0, until - time.monotonic())):
                await changed.wait()
        except TimeoutError:
            return

    def _wake(self) -> None:
        """Something changed that a waiting call may have waited for."""
        self._changed.set()
        self._changed = asyncio.Event()

    def _leave(self, stream: ReplicaStream) -> None:
        task = asyncio.create_task(stream.finish())
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)
