"""Replicas that fail, answer late or say nothing: they get less work, or a pause."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import pytest

from tests.effort import counted
from tests.worker.replicas import PATIENT, Scripted, link_to, replica, work
from worker.errors import (
    Internal,
    ShardlineError,
)
from worker.link import Link, LinkLimits
from worker.nouns import Answer, Work


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
async def both_open(*addresses: str, limits: LinkLimits = PATIENT) -> AsyncIterator[Link]:
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
        async with asyncio.timeout(20):
            while link._streams["r0"].standing.is_well:
                await link.call(work())
        before = sick.asked
        for _ in range(20):
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


async def test_waiting_beside_a_replica_that_rests_costs_next_to_nothing() -> None:
    sick, held = Sick(sick=False), Scripted()
    held.release.set()
    limits = LinkLimits(max_inflight=2)
    async with replica(sick) as (_, bad), replica(held) as (_, good), both_open(bad, good, limits=limits) as link:
        sick.sick = True
        await asyncio.gather(*(link.call(work(), wait=True) for _ in range(60)), return_exceptions=True)
        held.release.clear()
        calls = [asyncio.create_task(link.call(work(), wait=True)) for _ in range(50)]
        with counted() as effort:
            await asyncio.wait(calls, timeout=0.5)
        sick.sick = False
        done, _ = await asyncio.wait(calls, timeout=9, return_when=asyncio.FIRST_COMPLETED)
        assert any(task.exception() is None for task in done), "its rest is over, and those who wait were told"
        held.release.set()
        await asyncio.gather(*calls, return_exceptions=True)
        assert effort.lines < 50_000


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
        assert all(stream.standing.is_well for stream in link._streams.values())


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
        replica(backend("slow", 0.2)) as (_, slow),
        replica(backend("quick", 0.0)) as (_, quick),
        both_open(slow, quick) as link,
    ):
        for _ in range(100):  # one after the other: nothing waits at either
            await link.call(work())
    assert asked["slow"] < 25, asked


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
            while sum(call.done() for call in calls) + backend.arrived.qsize() < len(calls):  # noqa: ASYNC110
                await asyncio.sleep(0)  # the living one has answered what it has
        backend.release.set()
        await asyncio.gather(*calls)
        assert backend.arrived.qsize() < 20, "of 200"


@pytest.mark.parametrize("share", [0.0, 0.1])
async def test_a_late_answer_is_asked_of_a_second_replica_within_the_share_that_may_be(share: float) -> None:
    asked, often, usually_s, late = 0, 10_000, 0.0, 0

    async def sometimes_late(given: Work) -> Answer:
        nonlocal asked, late
        asked += 1
        if asked % often:
            await asyncio.sleep(usually_s)
        else:
            await asyncio.sleep(60 if share else 0.1)  # the deadline is in 10 s
            late += 1
        return Answer(given.tensors)

    limits = LinkLimits(hedge_share=share)
    async with (
        replica(sometimes_late) as (_, one),
        replica(sometimes_late) as (_, two),
        both_open(one, two, limits=limits) as link,
    ):
        usually_s = 0.2
        await asyncio.gather(*(link.call(work()) for _ in range(100)))  # what takes longer than these is late
        asked, often, usually_s = 0, 50, 0.0
        for _ in range(200):
            await link.call(work())
        often, usually_s = 10_000, 0.5
        await asyncio.gather(*(link.call(work()) for _ in range(60)))  # all are late: more than may be asked twice
    assert late == (0 if share else 4)
    assert asked >= 260 + (4 if share else 0)
    assert asked <= 260 + (260 * share + 8 if share else 0)


async def test_an_answer_counts_for_the_replica_that_gave_it_not_for_the_one_that_hangs() -> None:
    sick, hang = Sick(sick=False), asyncio.Event()

    async def sick_then_silent(given: Work) -> Answer:
        answer = await sick(given)
        if hang.is_set():
            await asyncio.Event().wait()
        return answer

    limits = LinkLimits(hedge_share=0.5)
    async with (
        replica(sick_then_silent) as (_, bad),
        replica() as (_, good),
        both_open(bad, good, limits=limits) as link,
    ):
        await asyncio.gather(*(link.call(work()) for _ in range(100)))
        stands = link._streams["r0"].standing
        while not stands.resting_until:
            stands.failed(time.monotonic(), trial=False)
        sick.asked, rested_until = 0, stands.resting_until
        hang.set()
        async with asyncio.timeout(20):
            while not sick.asked:
                await link.call(work())
        assert stands.resting_until > rested_until, "it was tried, and did not answer"
