"""Replicas that die, freeze, drain or leave the route: their requests are answered elsewhere."""

import asyncio
import contextlib
import signal
import time

import pytest

from tests.effort import counted
from tests.worker.replicas import Scripted, line_of, link_to, process, replica, work
from worker.errors import (
    Unavailable,
)
from worker.link import LinkLimits
from worker.replica_stream import StreamTimings


async def test_no_replica_is_told_within_the_link_s_patience() -> None:
    async with link_to(limits=LinkLimits(patience_s=0.3)) as link:
        started = time.monotonic()
        with pytest.raises(Unavailable, match=r"no replica answered within 0\.3 s"):
            await link.call(work(seconds=60))
        assert time.monotonic() - started < 5


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
    limits = LinkLimits(timings=StreamTimings(keepalive_s=0.3, keepalive_timeout_s=0.3))
    with process("hang") as (child, frozen):
        async with replica() as (_, living), link_to(frozen, limits=limits) as link:
            call = asyncio.create_task(link.call(work(b"thaw", seconds=60)))
            assert await line_of(child) == "got 1"
            child.send_signal(signal.SIGSTOP)
            link.route({"r0": frozen, "living": living})
            started = time.monotonic()
            assert bytes((await call).tensors[0].data) == b"thaw"
            assert time.monotonic() - started < 30


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
        async with link_to() as link:
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


async def test_those_who_wait_for_room_are_told_when_the_last_replica_is_gone() -> None:
    with process("hang") as (child, doomed):
        limits = LinkLimits(max_inflight=1, patience_s=0.3, attempts=1)
        async with link_to(doomed, limits=limits) as link:
            await asyncio.wait_for(link.room(), 30)
            calls = [asyncio.create_task(link.call(work(), wait=True)) for _ in range(5)]
            assert await line_of(child) == "got 1"
            child.send_signal(signal.SIGKILL)
            found = await asyncio.gather(*calls, return_exceptions=True)
            assert [type(error) for error in found] == [Unavailable] * 5, "not at their deadlines"


async def test_waiting_for_a_replica_costs_next_to_nothing() -> None:
    async with link_to(limits=LinkLimits(patience_s=0.5)) as link:
        calls = [asyncio.create_task(link.call(work(), wait=True)) for _ in range(50)]
        with counted() as effort:
            found = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(error) for error in found] == [Unavailable] * 50
        assert effort.lines < 50_000
