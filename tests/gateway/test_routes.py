import asyncio
from time import monotonic

import pytest

from gateway.routes import Routes
from tests.gateway.backend import TOKEN, echo, model, routes, table, worker
from tests.gateway.gate import Gate
from worker.errors import InvalidRequest, NotFound, Overloaded, Unavailable
from worker.nouns import Answer, Tensor, Work

X = Tensor("x", "FP32", (1, 4), bytes(16))


def work() -> Work:
    return Work((X,), monotonic() + 10)


async def ask(one: Routes, version: str = "") -> Answer:
    served = one.find("echo", version)
    with served.admission.request(0.0, 1.0):
        return await served.link.call(work())


async def test_an_empty_version_is_the_newest_that_is_ready() -> None:
    async with routes() as one:
        one.apply(table(model(version="2"), model(version="10"), model(version="11", ready=False)), TOKEN)
        assert one.find("echo", "").route.version == "10"
        assert one.find("echo", "2").route.version == "2"
        assert [served.route.version for served in one.versions("echo")] == ["2", "10", "11"]
        assert one.describe("echo", "").route.version == "10"
        assert one.describe("echo", "11").route.version == "11"


async def test_what_is_not_there_is_told_apart_from_what_is_not_ready() -> None:
    async with routes() as one:
        with pytest.raises(NotFound, match="unknown model: 'echo'"):
            one.find("echo", "")
        one.apply(table(model(ready=False, reason="stage 1 has no replica")), TOKEN)
        with pytest.raises(Unavailable, match="model 'echo' version 1 is not ready: stage 1 has no replica"):
            one.find("echo", "")
        with pytest.raises(NotFound, match="has no version '2'; its versions are 1"):
            one.find("echo", "2")
        with pytest.raises(InvalidRequest, match="names no model"):
            one.find("", "")
        assert [one.ready(name) for name in ("echo", "nope", "")] == [False, None, False]


async def test_a_table_that_makes_no_sense_changes_nothing() -> None:
    async with worker() as address, routes() as one:
        one.apply(table(model(replicas=[address])), TOKEN)
        for bad in (table(model(version="2"), model(version="x")), table(model(), model())):
            with pytest.raises(InvalidRequest):
                one.apply(bad, TOKEN)
        assert await ask(one) == Answer((X,), (await echo(work())).timing)


async def test_a_new_table_with_the_same_limits_keeps_links_and_counts() -> None:
    gate = Gate()
    async with worker(gate.serve) as first, worker() as second, routes() as one:
        one.apply(table(model(replicas=[first])), TOKEN)
        before = one.find("echo", "")
        asking = asyncio.create_task(ask(one))
        await gate.until(entered=1)
        one.apply(table(model(replicas=[second], max_inflight=1, max_batch_rows=3)), TOKEN)
        after = one.find("echo", "")
        assert after.link is before.link
        assert after.counters is before.counters
        assert after.contract.max_batch_rows == 3
        assert one.inflight == 1
        with pytest.raises(Overloaded):
            await ask(one)
        gate.open()
        assert (await asking).tensors == (X,)
        assert (await ask(one)).tensors == (X,)
        assert gate.entered == 1


async def test_a_version_that_leaves_answers_what_it_has() -> None:
    gate = Gate()
    async with worker(gate.serve) as address, routes() as one:
        one.apply(table(model(replicas=[address])), TOKEN)
        asking = asyncio.create_task(ask(one))
        await gate.until(entered=1)
        one.apply(table(), TOKEN)
        with pytest.raises(NotFound):
            one.find("echo", "")
        assert one.inflight == 1
        gate.open()
        assert (await asking).tensors == (X,)
        assert one.inflight == 0


async def test_another_token_or_another_link_bound_opens_another_link_and_loses_nothing() -> None:
    gate = Gate()
    async with worker(gate.serve) as old, worker(token="another") as new, routes() as one:
        one.apply(table(model(replicas=[old])), TOKEN)
        before = one.find("echo", "").link
        asking = asyncio.create_task(ask(one))
        await gate.until(entered=1)
        one.apply(table(model(replicas=[new])), "another")
        assert one.find("echo", "").link is not before
        assert (await ask(one)).tensors == (X,)
        one.apply(table(model(replicas=[new], max_inflight_per_replica=3)), "another")
        assert (await ask(one)).tensors == (X,)
        gate.open()
        assert (await asking).tensors == (X,)


async def test_a_version_that_is_not_ready_any_more_answers_what_it_has() -> None:
    gate = Gate()
    async with worker(gate.serve) as address, routes() as one:
        one.apply(table(model(replicas=[address])), TOKEN)
        asking = asyncio.create_task(ask(one))
        await gate.until(entered=1)
        one.apply(table(model(replicas=[address], ready=False)), TOKEN)
        with pytest.raises(Unavailable):
            one.find("echo", "")
        gate.open()
        assert (await asking).tensors == (X,)


async def test_closing_ends_what_is_in_flight() -> None:
    gate = Gate()
    async with worker(gate.serve) as address:
        async with routes() as one:
            one.apply(table(model(replicas=[address])), TOKEN)
            asking = asyncio.create_task(ask(one))
            await gate.until(entered=1)
        with pytest.raises(Unavailable):
            await asyncio.wait_for(asking, 20)
