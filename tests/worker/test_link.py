import asyncio
import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field

import pytest

from worker.errors import (
    Cancelled,
    DeadlineExceeded,
    Internal,
    InvalidRequest,
    Overloaded,
    ShardlineError,
    Unavailable,
)
from worker.link import Link, LinkLimits
from worker.nouns import Answer, Load, Tensor, Work
from worker.replica_stream import StreamTimings
from worker.stream_server import StreamServer

TOKEN = "the cluster's"
FAST = LinkLimits(patience_s=0.3, timings=StreamTimings(keepalive_s=0.3, keepalive_timeout_s=0.3))


def work(data: bytes = b"x", seconds: float = 10.0) -> Work:
    return Work((Tensor("x", "UINT8", (1, len(data)), data),), time.monotonic() + seconds)


async def echo(given: Work) -> Answer:
    return Answer(given.tensors)


@dataclass
class Scripted:
    """A backend that holds every request until it is released, and says what happened to it."""

    arrived: asyncio.Queue[Work] = field(default_factory=asyncio.Queue)
    cancelled: asyncio.Queue[Work] = field(default_factory=asyncio.Queue)
    release: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(self, given: Work) -> Answer:
        self.arrived.put_nowait(given)
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.cancelled.put_nowait(given)
            raise
        return Answer(given.tensors)


@contextlib.asynccontextmanager
async def replica(
    serve: Callable[[Work], Awaitable[Answer]] = echo, load: Callable[[], Load] = Load
) -> AsyncIterator[tuple[StreamServer, str]]:
    server = StreamServer(TOKEN, serve, load)
    try:
        yield server, await server.start()
    finally:
        await server.stop()


@contextlib.asynccontextmanager
async def link_to(*addresses: str, limits: LinkLimits = FAST, token: str = TOKEN) -> AsyncIterator[Link]:
    link = Link(token, limits)
    link.route({f"r{number}": address for number, address in enumerate(addresses)})
    try:
        yield link
    finally:
        await link.close()


@contextlib.contextmanager
def process(behaviour: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.worker.echo", TOKEN, behaviour], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    try:
        yield child, child.stdout.readline().strip()
    finally:
        child.kill()
        child.wait(10)
        child.stdout.close()


async def line_of(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    return (await asyncio.to_thread(child.stdout.readline)).strip()


async def test_an_answer_comes_back_unchanged() -> None:
    async with replica() as (_, address), link_to(address) as link:
        answer = await link.call(work(b"hello"))
        assert bytes(answer.tensors[0].data) == b"hello"
        assert answer.tensors[0].shape == (1, 5)


async def test_forty_megabytes_travel_in_pieces_and_do_not_block_small_requests() -> None:
    async with replica() as (_, address), link_to(address) as link:
        large = asyncio.create_task(link.call(work(bytes(40 << 20))))
        small = [await link.call(work(b"s")) for _ in range(3)]
        assert len(small) == 3
        assert not large.done()
        assert len((await large).tensors[0].data) == 40 << 20


async def test_many_calls_share_one_stream_and_none_gets_another_s_answer() -> None:
    async with replica() as (_, address), link_to(address, limits=LinkLimits(max_inflight=1000)) as link:
        answers = await asyncio.gather(*(link.call(work(str(number).encode())) for number in range(500)))
        assert [bytes(answer.tensors[0].data) for answer in answers] == [str(n).encode() for n in range(500)]


async def test_an_error_of_the_backend_reaches_the_caller() -> None:
    async def refuse(_: Work) -> Answer:
        raise InvalidRequest("input 'x' is too sad")

    async with replica(refuse) as (_, address), link_to(address) as link:
        with pytest.raises(InvalidRequest, match="too sad"):
            await link.call(work())


async def test_an_unexpected_failure_is_internal_and_says_nothing_of_its_cause() -> None:
    async def fail(_: Work) -> Answer:
        raise RuntimeError("secret")

    async with replica(fail) as (_, address), link_to(address) as link:
        with pytest.raises(Internal) as caught:
            await link.call(work())
        assert "secret" not in str(caught.value)


async def test_a_stranger_gets_nothing_and_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    backend = Scripted()
    async with replica(backend) as (_, address):
        for _ in range(2):
            async with link_to(address, token="a guess") as link:
                with pytest.raises(Unavailable):
                    await link.call(work())
    assert backend.arrived.empty()
    assert sum("does not hold the cluster's token" in record.message for record in caplog.records) == 1


async def test_over_the_bound_a_call_is_refused_at_once_or_waits_as_asked() -> None:
    backend = Scripted()
    limits = LinkLimits(max_inflight=1, timings=FAST.timings)
    async with replica(backend) as (_, address), link_to(address, limits=limits) as link:
        first = asyncio.create_task(link.call(work()))
        await backend.arrived.get()
        with pytest.raises(Overloaded):
            await link.call(work())
        second = asyncio.create_task(link.call(work(), wait=True))
        backend.release.set()
        await asyncio.gather(first, second)


async def test_waiting_for_room_ends_at_the_deadline() -> None:
    backend = Scripted()
    async with replica(backend) as (_, address), link_to(address, limits=LinkLimits(max_inflight=1)) as link:
        first = asyncio.create_task(link.call(work()))
        await backend.arrived.get()
        with pytest.raises(DeadlineExceeded):
            await link.call(work(seconds=0.1), wait=True)
        backend.release.set()
        await first


async def test_the_deadline_reaches_the_replica_and_ends_the_call() -> None:
    backend = Scripted()
    async with replica(backend) as (_, address), link_to(address) as link:
        with pytest.raises(DeadlineExceeded):
            await link.call(work(seconds=0.2))
        assert (await backend.arrived.get()).remaining < 0.2
        await backend.cancelled.get()


async def test_a_cancelled_call_is_cancelled_at_the_replica() -> None:
    backend = Scripted()
    async with replica(backend) as (server, address), link_to(address) as link:
        call = asyncio.create_task(link.call(work()))
        await backend.arrived.get()
        call.cancel()
        await backend.cancelled.get()
        assert await server.drain(1)


async def test_a_caller_that_goes_away_takes_its_work_with_it() -> None:
    backend = Scripted()
    async with replica(backend) as (_, address):
        async with link_to(address) as link:
            call = asyncio.create_task(link.call(work()))
            await backend.arrived.get()
        await backend.cancelled.get()
        with pytest.raises(Unavailable):
            await call


async def test_no_replica_is_told_within_the_link_s_patience() -> None:
    async with link_to() as link:
        started = time.monotonic()
        with pytest.raises(Unavailable, match="no replica"):
            await link.call(work())
        assert time.monotonic() - started < 2


async def test_a_call_waits_for_a_replica_that_comes_in_time() -> None:
    async with replica() as (_, address), link_to(limits=LinkLimits(patience_s=10)) as link:
        call = asyncio.create_task(link.call(work(b"late")))
        await asyncio.sleep(0)
        link.route({"new": address})
        assert bytes((await call).tensors[0].data) == b"late"


async def test_a_killed_replica_s_requests_go_to_a_living_one() -> None:
    with process("hang") as (child, doomed):
        async with replica() as (_, living), link_to(doomed) as link:
            calls = [asyncio.create_task(link.call(work(str(n).encode()))) for n in range(5)]
            while await line_of(child) != "got 5":
                pass
            link.route({"r0": doomed, "living": living})
            child.send_signal(signal.SIGKILL)
            answers = await asyncio.gather(*calls)
            assert [bytes(answer.tensors[0].data) for answer in answers] == [b"0", b"1", b"2", b"3", b"4"]


async def test_a_frozen_replica_is_given_up_within_the_keepalive_bound() -> None:
    with process("hang") as (child, frozen):
        async with replica() as (_, living), link_to(frozen) as link:
            call = asyncio.create_task(link.call(work(b"thaw")))
            assert await line_of(child) == "got 1"
            child.send_signal(signal.SIGSTOP)
            link.route({"r0": frozen, "living": living})
            started = time.monotonic()
            assert bytes((await call).tensors[0].data) == b"thaw"
            assert time.monotonic() - started < 5


async def test_two_deaths_under_one_request_are_survived() -> None:
    with process("hang") as (first, one), process("hang") as (second, two):
        async with replica() as (_, living), link_to(one) as link:
            call = asyncio.create_task(link.call(work(b"thrice")))
            assert await line_of(first) == "got 1"
            link.route({"r0": one, "r1": two})
            first.send_signal(signal.SIGKILL)
            assert await line_of(second) == "got 1"
            link.route({"r0": one, "r1": two, "r2": living})
            second.send_signal(signal.SIGKILL)
            assert bytes((await call).tensors[0].data) == b"thrice"


async def test_a_request_that_kills_every_replica_is_given_up() -> None:
    with contextlib.ExitStack() as stack:
        doomed = [stack.enter_context(process("hang")) for _ in range(3)]
        async with link_to(limits=LinkLimits(patience_s=10, timings=FAST.timings)) as link:
            call = asyncio.create_task(link.call(work()))
            for child, address in doomed:
                link.route({address: address})
                assert await line_of(child) == "got 1"
                child.send_signal(signal.SIGKILL)
            with pytest.raises(Unavailable, match="3 replicas died"):
                await call


async def test_a_draining_replica_answers_what_it_owes_and_gives_the_rest_back() -> None:
    backend = Scripted()
    async with replica(backend) as (server, leaving), replica() as (_, living), link_to(leaving) as link:
        owed = asyncio.create_task(link.call(work(b"owed")))
        await backend.arrived.get()
        draining = asyncio.create_task(server.drain(10))
        await asyncio.sleep(0)
        moved = asyncio.create_task(link.call(work(b"moved")))
        link.route({"r0": leaving, "r1": living})
        assert bytes((await moved).tensors[0].data) == b"moved"
        assert backend.arrived.empty()
        backend.release.set()
        assert bytes((await owed).tensors[0].data) == b"owed"
        assert await draining


async def test_a_replica_taken_out_of_the_route_still_answers_what_it_has() -> None:
    backend = Scripted()
    async with replica(backend) as (_, address), link_to(address) as link:
        call = asyncio.create_task(link.call(work(b"last")))
        await backend.arrived.get()
        link.route({})
        backend.release.set()
        assert bytes((await call).tensors[0].data) == b"last"


async def test_the_replica_with_less_to_do_gets_the_work() -> None:
    served = {"busy": 0, "free": 0}

    def counting(name: str) -> Callable[[Work], Awaitable[Answer]]:
        async def serve(given: Work) -> Answer:
            served[name] += 1
            return Answer(given.tensors)

        return serve

    async with (
        replica(counting("busy"), lambda: Load(500, 0.01)) as (_, busy),
        replica(counting("free"), lambda: Load(0, 0.01)) as (_, free),
        link_to(busy) as link,
    ):
        await link.call(work())  # both streams are open once each has been called
        link.route({"r1": free})
        await link.call(work())
        link.route({"r0": busy, "r1": free})
        await link.call(work())
        before = dict(served)
        for _ in range(50):
            await link.call(work())
        assert served["free"] - before["free"] >= 45


async def test_a_stream_that_breaks_the_contract_is_closed_and_the_rest_goes_on() -> None:
    import grpc

    async with replica() as (_, address), link_to(address) as link:
        async with grpc.aio.insecure_channel(address) as channel:
            call: grpc.aio.StreamStreamCall[bytes, bytes] = channel.stream_stream("/shardline.v1.Worker/Stream")(
                metadata=(("authorization", f"Bearer {TOKEN}"),)
            )
            await call.read()
            await call.write(b"\xff\xff\xff\xff")
            assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert bytes((await link.call(work(b"fine"))).tensors[0].data) == b"fine"


def test_every_kind_of_error_keeps_its_code() -> None:
    assert (Cancelled.code, DeadlineExceeded.code, Overloaded.code, Unavailable.code) == (1, 4, 8, 14)


@dataclass
class Sick:
    """A backend that fails while it is sick, and counts what it was asked."""

    error: type[ShardlineError] = Internal
    sick: bool = True
    asked: int = 0

    async def __call__(self, given: Work) -> Answer:
        self.asked += 1
        if self.sick:
            raise self.error("a broken machine")
        return Answer(given.tensors)


@contextlib.asynccontextmanager
async def both_open(*addresses: str, limits: LinkLimits = FAST) -> AsyncIterator[Link]:
    """A link whose streams are all open."""
    async with link_to(limits=limits) as link:
        for number, address in enumerate(addresses):
            link.route({f"r{number}": address})
            await link.call(work(b"hello"))
        link.route({f"r{number}": address for number, address in enumerate(addresses)})
        async with asyncio.timeout(10):
            while link.ready < len(addresses):
                await link.call(work(b"hello"))
        yield link


async def test_what_one_replica_fails_on_another_one_answers_and_the_failing_one_is_taken_out() -> None:
    sick = Sick(sick=False)
    async with replica(sick) as (_, bad), replica() as (_, good), both_open(bad, good) as link:
        sick.sick, sick.asked = True, 0
        answers = await asyncio.gather(*(link.call(work(str(n).encode())) for n in range(60)))
        assert [bytes(answer.tensors[0].data) for answer in answers] == [str(n).encode() for n in range(60)]
        before = sick.asked
        for _ in range(100):
            await link.call(work())
        assert sick.asked <= before + 1, "it rests, but for a trial"


async def test_a_replica_that_is_well_again_gets_work_again() -> None:
    sick = Sick(sick=False)
    async with replica(sick) as (_, bad), replica() as (_, good), both_open(bad, good) as link:
        sick.sick = True
        await asyncio.gather(*(link.call(work()) for _ in range(60)))
        sick.sick, sick.asked = False, 0
        async with asyncio.timeout(20):
            while sick.asked < 20:
                await asyncio.gather(*(link.call(work()) for _ in range(4)))


async def test_a_request_on_which_two_replicas_fail_is_given_up_and_holds_nothing_against_them() -> None:
    one, two, three = Sick(sick=False), Sick(sick=False), Sick(sick=False)
    async with (
        replica(one) as (_, first),
        replica(two) as (_, second),
        replica(three) as (_, third),
        both_open(first, second, third) as link,
    ):
        one.sick = two.sick = three.sick = True
        one.asked = two.asked = three.asked = 0
        for number in range(30):
            with pytest.raises(Internal, match="a broken machine") as caught:
                await link.call(work())
            assert caught.value.confirmed, "a stage before would not try another of its own"
            assert one.asked + two.asked + three.asked == 2 * (number + 1)
        one.sick = two.sick = three.sick = False
        one.asked = two.asked = three.asked = 0
        await asyncio.gather(*(link.call(work()) for _ in range(60)))
        assert min(one.asked, two.asked, three.asked) > 5


async def test_what_several_replicas_of_a_later_stage_failed_on_is_not_tried_again() -> None:
    class Confirmed(Internal):
        confirmed = True

    first, second = Sick(Confirmed, sick=False), Sick(Confirmed, sick=False)
    async with replica(first) as (_, one), replica(second) as (_, two), both_open(one, two) as link:
        first.sick = second.sick = True
        first.asked = second.asked = 0
        with pytest.raises(Internal):
            await link.call(work())
        assert first.asked + second.asked == 1


async def test_a_model_that_fails_on_everything_does_not_cost_twice_for_ever() -> None:
    first, second = Sick(sick=False), Sick(sick=False)
    limits = LinkLimits(max_inflight=4)
    async with replica(first) as (_, one), replica(second) as (_, two), both_open(one, two, limits=limits) as link:
        first.sick = second.sick = True
        first.asked = second.asked = 0
        for _ in range(100):
            with pytest.raises(Internal):
                await link.call(work())
        assert first.asked + second.asked <= 100 + 2 * limits.max_inflight


async def test_a_replica_that_answers_late_gets_less_work_whatever_it_says_of_itself() -> None:
    asked = {"slow": 0, "quick": 0}

    def backend(name: str, seconds: float) -> Callable[[Work], Awaitable[Answer]]:
        async def serve(given: Work) -> Answer:
            asked[name] += 1
            await asyncio.sleep(seconds)
            return Answer(given.tensors)

        return serve

    async with (
        replica(backend("slow", 0.05)) as (_, slow),
        replica(backend("quick", 0.005)) as (_, quick),
        both_open(slow, quick) as link,
    ):

        async def caller() -> None:
            for _ in range(50):
                await link.call(work())

        await asyncio.gather(*(caller() for _ in range(4)))
    assert asked["slow"] < 0.15 * asked["quick"], asked


async def test_a_silent_replica_gets_hardly_any_work_before_it_is_given_up() -> None:
    backend = Scripted()
    async with replica(backend) as (_, silent), replica() as (_, living), link_to(living) as link:
        link.route({"r0": living, "r1": silent})
        async with asyncio.timeout(10):
            while link.ready < 2:  # noqa: ASYNC110 - nothing tells when a stream is open but the stream itself
                await asyncio.sleep(0)
        calls: list[asyncio.Task[Answer]] = []
        for _ in range(50):
            calls += [asyncio.create_task(link.call(work())) for _ in range(4)]
            await asyncio.wait(calls[-4:], timeout=0.01)
        backend.release.set()
        await asyncio.gather(*calls)
        assert backend.arrived.qsize() < 20, "of 200"


@pytest.mark.parametrize("share", [0.0, 0.1])
async def test_a_late_answer_is_asked_of_a_second_replica_within_the_share_that_may_be(share: float) -> None:
    asked, often = 0, 10_000

    async def sometimes_late(given: Work) -> Answer:
        nonlocal asked
        asked += 1
        await asyncio.sleep(0.5 if asked % often == 0 else 0.001)
        return Answer(given.tensors)

    limits = LinkLimits(hedge_share=share)
    async with (
        replica(sometimes_late) as (_, one),
        replica(sometimes_late) as (_, two),
        both_open(one, two, limits=limits) as link,
    ):
        await asyncio.gather(*(link.call(work()) for _ in range(100)))
        asked, often, late = 0, 40, 0
        for _ in range(200):
            began = time.monotonic()
            await link.call(work())
            late += time.monotonic() - began > 0.4
    assert (late == 0) == bool(share), f"{late} answers were late"
    assert asked <= 200 * (1 + share) + 8


async def test_those_who_wait_for_room_come_in_turn_and_none_is_overtaken() -> None:
    order: list[bytes] = []

    async def one_by_one(given: Work) -> Answer:
        order.append(bytes(given.tensors[0].data))
        await asyncio.sleep(0.002)
        return Answer(given.tensors)

    limits = LinkLimits(max_inflight=1)
    async with replica(one_by_one) as (_, address), link_to(address, limits=limits) as link:
        await link.call(work(b"open"))
        calls = [asyncio.create_task(link.call(work(b"%03d" % number), wait=True)) for number in range(100)]
        for number in range(100, 130):
            await asyncio.sleep(0.001)
            calls.append(asyncio.create_task(link.call(work(b"%03d" % number), wait=True)))
        await asyncio.gather(*calls)
    assert order[1:] == [b"%03d" % number for number in range(130)]


async def test_those_who_wait_for_room_are_told_when_the_last_replica_is_gone() -> None:
    with process("hang") as (child, doomed):
        limits = LinkLimits(max_inflight=1, patience_s=0.3, attempts=1, timings=FAST.timings)
        async with link_to(doomed, limits=limits) as link:
            calls = [asyncio.create_task(link.call(work(), wait=True)) for _ in range(5)]
            assert await line_of(child) == "got 1"
            child.send_signal(signal.SIGKILL)
            started = time.monotonic()
            found = await asyncio.gather(*calls, return_exceptions=True)
            assert [type(error) for error in found] == [Unavailable] * 5
            assert time.monotonic() - started < 3
