"""The one piece of code that calls a worker: from the gateway to stage 0, and from a stage to the next.

A `Link` holds one stream to each replica, picks a replica by power of two choices (Mitzenmacher 2001) on the load that
replies carry back and on how late they come, bounds what is in flight, and sends what a dead replica still owed to a
living one while the deadline lasts. What fails at one replica is tried at one other; a replica that fails again and
again where another does not gets a pause.
"""

import asyncio
import logging
import random
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Final

from worker.allowance import Allowance
from worker.errors import DeadlineExceeded, Internal, Overloaded, ShardlineError, Unavailable
from worker.hedging import Hedging
from worker.nouns import Answer, Forecast, Work
from worker.replica_stream import Lost, Refused, ReplicaStream, StreamTimings
from worker.routing import choose
from worker.turns import Turns

_CHANCE = random.Random()


_TRIED_AGAIN = 0.2
"""Of the requests, the share that may fail at one replica and be tried at another, beyond a first burst of them: a
model that fails on everything costs so much more, not twice as much."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LinkLimits:
    """Bounds of a link.

    max_inflight: requests outstanding at one replica.
    attempts: replicas that may die under one request before it is given up.
    patience_s: longest wait for a living replica where there is none; then `Unavailable`.
    hedge_share: at most this share of the requests is sent to a second replica too, when the first takes longer than
        95 of 100 requests do; the first answer counts. 0: none is.
    """

    max_inflight: int = 64
    attempts: int = 3
    patience_s: float = 5.0
    hedge_share: float = 0.0
    timings: StreamTimings = field(default_factory=StreamTimings)


STAGE_LINK: Final = LinkLimits(max_inflight=8)
"""Between stages few batches are in flight, so that what waits is still put together in the first stage; but as many as
keep the next stage at work while a long batch takes its time here (docs/hot-path.md)."""


class Link:
    """Calls the replicas of one stage. Belongs to the event loop it is used on."""

    def __init__(self, token: str, limits: LinkLimits | None = None) -> None:
        self._token = token
        self._limits = limits or LinkLimits()
        self._streams: dict[str, ReplicaStream] = {}
        self._leaving: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._turns = Turns()
        self._closed = False
        self._second_tries = Allowance(_TRIED_AGAIN, 2.0 * self._limits.max_inflight)
        self._hedging = Hedging(self._limits.hedge_share) if self._limits.hedge_share else None

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
        and whatever the replica answers; where that says that the replica failed, what a second one answers.
        """
        lost = 0
        doubted: tuple[ReplicaStream, ...] = ()
        try:
            while True:
                stream = self._place(doubted, wait=wait) or await self._wait_for_room(work, doubted, wait=wait)
                trial = stream.standing.trial(time.monotonic())
                try:
                    answer, gave = await self._ask(stream, work, doubted)
                except Refused:
                    continue  # draining: it computed nothing, and is not picked again
                except Lost as error:
                    lost += 1
                    if lost >= self._limits.attempts:
                        raise _confirmed(
                            Unavailable(f"{lost} replicas died while they had the request; the last: {error}")
                        ) from error
                except (Internal, Unavailable) as error:
                    if doubted:
                        raise _confirmed(error) from None
                    if error.confirmed or not self._may_try_another(stream):
                        raise
                    stream.standing.suspect()
                    doubted, doubted_on_trial = (stream,), trial
                else:
                    if gave.standing.succeeded():
                        self._wake()  # it has room for those who wait, if it rested until now
                    if doubted and gave is not doubted[0]:
                        self._convict(doubted[0], trial=doubted_on_trial)
                    self._second_tries.earn()
                    return answer
        finally:
            for stream in doubted:
                stream.standing.suspect(-1)

    @property
    def ready(self) -> int:
        """Replicas that take work."""
        return sum(stream.ready for stream in self._streams.values())

    def forecast(self, rows: int) -> Forecast:
        """When `rows` that are sent now are answered, and how fast all replicas together are, as they tell."""
        now = time.monotonic()
        able = [
            stream.standing
            for stream in self._streams.values()
            if stream.ready and stream.standing.resting_until <= now
        ]
        ahead = len(self._turns) // max(1, len(able))
        rows_a_second = sum(1.0 / standing.pace_s for standing in able if standing.pace_s)
        return Forecast(
            min((standing.expected_finish(now, rows + ahead) for standing in able), default=0.0),
            1.0 / rows_a_second if rows_a_second else 0.0,
            min((standing.least_finish(rows) for standing in able), default=0.0),
        )

    @property
    def has_room(self) -> bool:
        """Whether some living replica has room for one more request."""
        return self._pick() is not None

    async def room(self) -> None:
        """Returns when some living replica has room for one more request."""
        while not self.has_room:
            await self._next_change(None)

    async def close(self) -> None:
        """Closes every stream; what is in flight fails with `Unavailable`."""
        self._closed = True
        self._turns.wake_all()
        streams, self._streams = list(self._streams.values()), {}
        for task in self._leaving:
            task.cancel()
        await asyncio.gather(*(stream.close() for stream in streams), *self._leaving, return_exceptions=True)

    def _pick(self, avoid: Collection[ReplicaStream] = ()) -> ReplicaStream | None:
        now = time.monotonic()
        open_to_work = [one for one in self._able(now, avoid) if one.inflight < self._limits.max_inflight]
        return choose(open_to_work, lambda stream: stream.expected_wait(now), _CHANCE)

    def _able(self, now: float, avoid: Collection[ReplicaStream] = ()) -> list[ReplicaStream]:
        """Those that take work; where all of them rest, each is as good as any: the fault may be the model's."""
        ready = [stream for stream in self._streams.values() if stream.ready and stream not in avoid]
        return [stream for stream in ready if stream.standing.resting_until <= now] or ready

    async def _ask(
        self, stream: ReplicaStream, work: Work, doubted: tuple[ReplicaStream, ...]
    ) -> tuple[Answer, ReplicaStream]:
        """The answer, and who gave it."""
        if self._hedging is None:
            return await stream.call(work), stream
        began = time.monotonic()
        answered = await self._ask_twice(stream, work, self._hedging, doubted)
        self._hedging.took(time.monotonic() - began)
        return answered

    async def _ask_twice(
        self, stream: ReplicaStream, work: Work, hedging: Hedging, doubted: tuple[ReplicaStream, ...]
    ) -> tuple[Answer, ReplicaStream]:
        """Asks a second replica where the first takes long; the first good answer counts, the other is withdrawn."""
        asked, streams = [asyncio.create_task(stream.call(work))], [stream]
        try:
            await asyncio.wait(asked, timeout=hedging.delay_s)
            if not asked[0].done():
                unwell = (one for one in self._streams.values() if not one.standing.is_well)
                other = self._pick((stream, *doubted, *unwell))
                if other is not None and hedging.may_hedge():
                    asked.append(asyncio.create_task(other.call(work)))
                    streams.append(other)
                    await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
            for task, who in sorted(zip(asked, streams, strict=True), key=lambda one: not one[0].done()):
                await asyncio.wait((task,))
                if task.exception() is None:
                    return task.result(), who
            return asked[0].result(), stream
        finally:
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)

    def _may_try_another(self, stream: ReplicaStream) -> bool:
        return any(other.ready and other is not stream for other in self._streams.values()) and (
            self._second_tries.take()
        )

    def _convict(self, stream: ReplicaStream, *, trial: bool) -> None:
        """It failed on a request on which another replica did not."""
        now = time.monotonic()
        if stream.standing.failed(now, trial=trial):
            asyncio.get_running_loop().call_later(max(0.0, stream.standing.resting_until - now), self._wake)
            logger.warning("%s fails where others do not: it gets a pause, and is tried again after it", stream.address)

    def _place(self, avoid: Collection[ReplicaStream], *, wait: bool) -> ReplicaStream | None:
        """A replica with room, unless others who wait come first."""
        return None if wait and not avoid and self._turns else self._pick(avoid)

    async def _wait_for_room(self, work: Work, avoid: Collection[ReplicaStream], *, wait: bool) -> ReplicaStream:
        give_up: float | None = None
        number = self._turns.number()
        while True:
            if self._closed:
                raise Unavailable("the link was closed")
            until = work.deadline
            if any(stream.ready and stream not in avoid for stream in self._streams.values()):
                if not wait and not avoid:
                    raise Overloaded("every replica has as many requests in flight as it may; try again later")
                give_up = None
            else:
                give_up = give_up or time.monotonic() + self._limits.patience_s
                until = min(until, give_up)
            if time.monotonic() >= until:
                self._offer_places()  # it may have been woken just now: its place is another one's
                if until == work.deadline:
                    raise DeadlineExceeded("the deadline passed while the request waited for a replica")
                raise Unavailable(f"no replica answered within {self._limits.patience_s:g} s")
            if avoid:
                await self._next_change(until)
            else:
                await self._turn(work.priority, number, until)
            stream = self._pick(avoid) if work.remaining > 0 else None
            if stream is not None:
                return stream

    async def _turn(self, priority: int, number: int, until: float) -> None:
        # Those before it may leave room: once it waits, it is looked whom there is room for.
        asyncio.get_running_loop().call_soon(self._offer_places)
        try:
            await self._turns.wait(priority, number, until)
        except asyncio.CancelledError:
            self._offer_places()  # it may have been woken just now: its place is another one's
            raise

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
        if any(stream.ready for stream in self._streams.values()):
            self._offer_places()
        else:
            self._turns.wake_all()  # each looks how long it may still wait

    def _offer_places(self) -> None:
        """Wakes as many of those who wait as there is room for."""
        if self._turns:
            able = self._able(time.monotonic())
            self._turns.wake(sum(max(0, self._limits.max_inflight - stream.inflight) for stream in able))

    def _leave(self, stream: ReplicaStream) -> None:
        task = asyncio.create_task(stream.finish())
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)


def _confirmed(error: ShardlineError) -> ShardlineError:
    error.confirmed = True
    return error
