import asyncio
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2 as pb
from grpc_health.v1 import health_pb2_grpc

from gateway.health import Health
from tests.gateway.backend import model, running, served
from tests.gateway.stock import channel, connected

SERVING, NOT_SERVING, UNKNOWN = "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"


def name_of(response: Any) -> str:
    return str(pb.HealthCheckResponse.ServingStatus.Name(response.status))


async def check(stub: Any, service: str) -> str:
    try:
        return name_of(await stub.Check(pb.HealthCheckRequest(service=service), timeout=5))
    except grpc.aio.AioRpcError as error:
        return error.code().name


async def test_a_stock_probe_sees_the_whole_server_and_each_model() -> None:
    async with running(served(), served("cold", ready=False)) as one, channel(one.address) as raw:
        stub = health_pb2_grpc.HealthStub(raw)
        assert await check(stub, "") == SERVING
        assert await check(stub, "inference.GRPCInferenceService") == SERVING
        assert await check(stub, "echo") == SERVING
        assert await check(stub, "cold") == NOT_SERVING
        assert await check(stub, "nope") == "NOT_FOUND"


async def test_a_server_without_a_ready_model_is_not_serving() -> None:
    async with running(served(ready=False)) as one, channel(one.address) as raw, connected(one.address) as client:
        assert await check(health_pb2_grpc.HealthStub(raw), "") == NOT_SERVING
        assert await client.is_server_live()
        assert not await client.is_server_ready()
        one.apply(model(replicas=[one.worker]))
        assert await check(health_pb2_grpc.HealthStub(raw), "") == SERVING
        assert await client.is_server_ready()


async def test_a_model_that_a_request_would_wake_is_ready_until_the_cluster_stops() -> None:
    asleep = model("sleeper", ready=False, reason="nobody asked for it", start_wait_s=30)
    async with running(served(ready=False)) as one, channel(one.address) as raw, connected(one.address) as client:
        stub = health_pb2_grpc.HealthStub(raw)
        watch = stub.Watch(pb.HealthCheckRequest(service="sleeper"))
        assert await told(watch) == UNKNOWN
        one.apply(asleep, model(ready=False))
        assert await told(watch) == SERVING
        assert [await check(stub, name) for name in ("", "sleeper", "echo")] == [SERVING, SERVING, NOT_SERVING]
        assert await client.is_server_ready()
        assert [await client.is_model_ready(name) for name in ("sleeper", "echo")] == [True, False]
        assert await client.is_model_ready("sleeper", "1")
        index = await client.get_model_repository_index()
        assert {each.name: each.state for each in index.models} == {"sleeper": "READY", "echo": "UNAVAILABLE"}
        one.apply(asleep, stopping=True)
        assert await told(watch) == NOT_SERVING
        assert await check(stub, "") == NOT_SERVING
        assert not await client.is_model_ready("sleeper")


async def test_a_watch_tells_every_change_until_the_server_drains() -> None:
    async with running(served(ready=False)) as one, channel(one.address) as raw:
        stub = health_pb2_grpc.HealthStub(raw)
        echo, other, whole = (stub.Watch(pb.HealthCheckRequest(service=name)) for name in ("echo", "other", ""))
        assert [await told(watch) for watch in (echo, other, whole)] == [NOT_SERVING, UNKNOWN, NOT_SERVING]
        one.apply(model(replicas=[one.worker]))
        assert [await told(watch) for watch in (echo, whole)] == [SERVING, SERVING]
        one.apply(model(replicas=[one.worker]), model("other", replicas=[one.worker]))
        assert await told(other) == SERVING
        one.apply(model(replicas=[one.worker]))
        assert await told(other) == UNKNOWN
        await asyncio.wait_for(one.gateway.drain(0.1, 5), 5)
        assert [await told(watch) for watch in (echo, whole)] == [NOT_SERVING, NOT_SERVING]
        assert await told(echo) == "the end"


async def told(watch: Any) -> str:
    response = await asyncio.wait_for(watch.read(), 5)
    return "the end" if response is grpc.aio.EOF else name_of(response)


async def test_a_client_that_leaves_ends_its_watch() -> None:
    async with running() as one:
        async with channel(one.address) as raw:
            watch = health_pb2_grpc.HealthStub(raw).Watch(pb.HealthCheckRequest())
            assert await told(watch) == SERVING
        await asyncio.wait_for(one.gateway.stop(10), 5)


async def test_nothing_is_ready_while_the_server_drains() -> None:
    async with running() as one, channel(one.address) as raw, connected(one.address) as client:
        draining = asyncio.create_task(one.gateway.drain(60, 5))
        await asyncio.sleep(0)
        stub = health_pb2_grpc.HealthStub(raw)
        assert [await check(stub, service) for service in ("", "echo")] == [NOT_SERVING, NOT_SERVING]
        assert await client.is_server_live()
        assert not await client.is_server_ready()
        assert not await client.is_model_ready("echo")
        draining.cancel()
        await asyncio.wait((draining,))


@pytest.mark.parametrize(
    ("ready", "draining", "serving"), [(True, False, True), (True, True, False), (None, False, False)]
)
def test_serving_is_ready_and_not_draining(ready: bool | None, draining: bool, serving: bool) -> None:
    health = Health(lambda _: ready)
    if draining:
        health.drain()
    assert health.serving is serving
