"""Calls over a link: what comes back, and the bounds of what is on its way."""

import asyncio
from collections.abc import Awaitable, Callable

import grpc
import grpc.aio
import pytest

from tests.worker.replicas import TOKEN, Scripted, echo, link_to, replica, work
from worker.errors import (
    Cancelled,
    DeadlineExceeded,
    Internal,
    InvalidRequest,
    Overloaded,
    Unavailable,
)
from worker.frames import METHOD
from worker.link import LinkLimits
from worker.nouns import Answer, Load, Work
from worker.stream_server import StreamServer


async def test_an_answer_comes_back_unchanged() -> None:
    async with replica() as (_, address), link_to(address) as link:
        answer = await link.call(work(b"hello"))
        assert bytes(answer.tensors[0].data) == b"hello"
        assert answer.tensors[0].shape == (1, 5)


async def test_forty_megabytes_travel_in_pieces_and_do_not_block_small_requests() -> None:
    arrived: list[int] = []

    async def noted(given: Work) -> Answer:
        arrived.append(len(given.tensors[0].data))
        return Answer(given.tensors)

    async with replica(noted) as (_, address), link_to(address) as link:
        await asyncio.wait_for(link.room(), 30)
        large = asyncio.create_task(link.call(work(bytes(40 << 20), seconds=60)))
        await asyncio.sleep(0)  # it is sent first
        await link.call(work(b"s"))
        assert not large.done()
        assert len((await large).tensors[0].data) == 40 << 20
    assert arrived == [1, 40 << 20]


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
        async with link_to(address, token="a guess", limits=LinkLimits(patience_s=0.3)) as link:
            with pytest.raises(Unavailable):
                await link.call(work())
        for _ in range(2):  # a connection carries one call
            async with grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
                call: grpc.aio.StreamStreamCall[bytes, bytes] = channel.stream_stream(METHOD)(
                    metadata=(("authorization", "Bearer a guess"),)
                )
                assert await call.code() is grpc.StatusCode.UNAUTHENTICATED
    assert backend.arrived.empty()
    assert sum("does not hold the cluster's token" in record.message for record in caplog.records) == 1


async def test_over_the_bound_a_call_is_refused_at_once_or_waits_as_asked() -> None:
    backend = Scripted()
    async with replica(backend) as (_, address), link_to(address, limits=LinkLimits(max_inflight=1)) as link:
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
        await asyncio.wait_for(link.room(), 30)
        with pytest.raises(DeadlineExceeded):
            await link.call(work(seconds=1))
        async with asyncio.timeout(30):
            assert (await backend.arrived.get()).remaining < 1
            await backend.cancelled.get()


async def test_a_cancelled_call_is_cancelled_at_the_replica() -> None:
    backend = Scripted()
    async with replica(backend) as (server, address), link_to(address) as link:
        call = asyncio.create_task(link.call(work()))
        await backend.arrived.get()
        call.cancel()
        await backend.cancelled.get()
        assert await server.drain(20)


async def test_a_caller_that_goes_away_takes_its_work_with_it() -> None:
    backend = Scripted()
    async with replica(backend) as (_, address):
        async with link_to(address) as link:
            call = asyncio.create_task(link.call(work()))
            await backend.arrived.get()
        await backend.cancelled.get()
        with pytest.raises(Unavailable):
            await call


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
    async with replica() as (_, address), link_to(address) as link:
        async with grpc.aio.insecure_channel(address) as channel:
            call: grpc.aio.StreamStreamCall[bytes, bytes] = channel.stream_stream(METHOD)(
                metadata=(("authorization", f"Bearer {TOKEN}"),)
            )
            await call.read()
            await call.write(b"\xff\xff\xff\xff")
            assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert bytes((await link.call(work(b"fine"))).tensors[0].data) == b"fine"


def test_every_kind_of_error_keeps_its_code() -> None:
    assert (Cancelled.code, DeadlineExceeded.code, Overloaded.code, Unavailable.code) == (1, 4, 8, 14)


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


async def test_a_proxy_for_the_way_out_is_not_asked_within_the_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    for name in ("no_proxy", "no_grpc_proxy", "grpc_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    async with replica() as (_, address), link_to(address) as link:
        await link.call(work())


async def test_a_node_s_address_may_be_ipv6() -> None:
    server = StreamServer(TOKEN, echo, Load)
    try:
        address = await server.start("::1")
        assert address.startswith("[::1]:")
        async with link_to(address) as link:
            await link.call(work())
    finally:
        await server.stop()
