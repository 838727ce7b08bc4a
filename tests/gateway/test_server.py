import asyncio
import contextlib
import socket

import grpc
import grpc.aio
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gateway.server import Gateway
from tests.gateway.backend import TOKEN, model, running, served, table, worker
from tests.gateway.gate import Gate
from tests.gateway.stock import ROWS, InferenceServerException, channel, connected, infer, infer_input


async def test_a_drain_answers_everything_that_is_in_flight_and_takes_more_until_it_closes() -> None:
    gate = Gate()
    async with running(serve=gate.serve) as one, connected(one.address) as client, channel(one.address) as raw:
        held = [asyncio.create_task(client.infer("echo", [infer_input()])) for _ in range(20)]
        await gate.until(entered=20)
        watch = health_pb2_grpc.HealthStub(raw).Watch(health_pb2.HealthCheckRequest())
        await watch.read()
        draining = asyncio.create_task(one.gateway.drain(1, 30))
        late = asyncio.create_task(client.infer("echo", [infer_input()]))
        await gate.until(entered=21)
        while await watch.read() is not grpc.aio.EOF:
            pass  # it ends when the server takes no new calls
        gate.open()
        for result in await asyncio.gather(*held, late):
            np.testing.assert_array_equal(result.as_numpy("x"), ROWS)
        await asyncio.wait_for(draining, 30)
        with pytest.raises(InferenceServerException) as caught:
            await client.infer("echo", [infer_input()], client_timeout=5)
        assert caught.value.status() == "StatusCode.UNAVAILABLE"


async def test_a_drain_ends_what_takes_too_long() -> None:
    gate = Gate()
    async with running(serve=gate.serve) as one, channel(one.address) as raw:
        held = asyncio.create_task(infer(raw))
        await gate.until(entered=1)
        await asyncio.wait_for(one.gateway.drain(0.0, 0.2), 10)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await held
        assert caught.value.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
        await gate.until(cancelled=1)


async def test_an_address_that_cannot_be_had_is_told() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(OSError, match=f"cannot listen on {address}"):
            async with Gateway(address):
                pass


async def test_a_request_meets_either_the_old_table_or_the_new_one() -> None:
    answered = asyncio.Event()
    async with worker() as first, running(served()) as one, connected(one.address) as client:

        async def ask(times: int) -> None:
            try:
                for _ in range(times):
                    np.testing.assert_array_equal((await client.infer("echo", [infer_input()])).as_numpy("x"), ROWS)
                    answered.set()
            finally:
                answered.set()

        asking = [asyncio.create_task(ask(40)) for _ in range(8)]
        generation = 1
        while not all(task.done() for task in asking):
            generation += 1
            replicas = [first] if generation % 2 else [first, one.worker]
            bound = 64 + generation % 3
            one.gateway.apply(table(model(replicas=replicas, max_inflight_per_replica=bound)), TOKEN)
            answered.clear()
            await answered.wait()  # a busy machine could not open a link for each table that came sooner
        await asyncio.gather(*asking)
        assert generation > 3
        assert one.inflight == 0


async def test_callers_that_never_stop_lose_nothing_when_one_gateway_follows_another() -> None:
    """Four gateways on one port, each draining under load when the next has started."""
    done = False

    async def ask(raw: grpc.aio.Channel) -> int:
        answers = 0
        while not done:
            assert await infer(raw, timeout=10)
            answers += 1
        return answers

    async with worker() as address, contextlib.AsyncExitStack() as stack:
        routes = table(model(replicas=[address]))
        old = await stack.enter_async_context(Gateway("127.0.0.1:0"))
        old.apply(routes, TOKEN)
        raws = [await stack.enter_async_context(channel(f"127.0.0.1:{old.port}")) for _ in range(4)]
        asking = [asyncio.create_task(ask(raw)) for raw in raws for _ in range(8)]
        for _ in range(3):
            new = await stack.enter_async_context(Gateway(f"127.0.0.1:{old.port}"))
            new.apply(routes, TOKEN)
            await old.drain(0.1, 10)
            old = new
        done = True
        assert min(await asyncio.gather(*asking)) > 0
