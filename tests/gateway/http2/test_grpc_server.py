"""How a server ends, and whom it lets in when it is full."""

import asyncio

from gateway.http2.call import CallContext, Methods
from gateway.http2.grpc_server import END_S, GrpcServer
from gateway.settings import ServerLimits
from tests.gateway.http2.raw_client import data, headers, raw_client, wrapped
from worker.http2.frames import Code, Kind

PATH = "/a.B/Call"


async def give_back(message: bytes, _: CallContext) -> bytes:
    return message


async def test_a_connection_that_comes_as_the_server_leaves_is_told_so() -> None:
    server = GrpcServer(Methods({PATH: give_back}, {}), ServerLimits())
    port = await server.start("127.0.0.1", 0)
    async with raw_client(f"127.0.0.1:{port}") as client:
        stopping = asyncio.create_task(server.stop(10))
        assert (await client.until(Kind.GOAWAY)).code == Code.NO_ERROR
        client.send(headers(path=PATH), data(wrapped(b"late")))
        assert (await client.answer()).data == wrapped(b"late")
    await asyncio.wait_for(stopping, 10)


async def test_a_handler_that_does_not_let_itself_be_cancelled_holds_no_stop_up() -> None:
    entered, let_go = asyncio.Event(), asyncio.Event()

    async def stubborn(message: bytes, _: CallContext) -> bytes:
        entered.set()
        while not let_go.is_set():
            try:
                await let_go.wait()
            except asyncio.CancelledError:
                continue
        return message

    server = GrpcServer(Methods({PATH: stubborn}, {}), ServerLimits())
    port = await server.start("127.0.0.1", 0)
    async with raw_client(f"127.0.0.1:{port}") as client:
        client.send(headers(path=PATH), data(wrapped(b"")))
        await entered.wait()
        stopping = asyncio.create_task(server.stop())
        assert (await client.answer()).headers["grpc-status"] == "14"
        client.send(headers(3, path=PATH), data(wrapped(b""), 3))
        assert (await client.answer(3)).headers["grpc-status"] == "14"
        await asyncio.wait_for(stopping, END_S + 5)
        assert await client.hung_up()
        assert server.calls == 0
        let_go.set()


async def test_a_new_connection_takes_the_place_of_the_one_that_was_idle_for_longest() -> None:
    entered, let_go = asyncio.Event(), asyncio.Event()

    async def waits(message: bytes, _: CallContext) -> bytes:
        entered.set()
        await let_go.wait()
        return message

    server = GrpcServer(Methods({PATH: waits}, {}), ServerLimits(max_connections=2))
    port = await server.start("127.0.0.1", 0)
    address = f"127.0.0.1:{port}"
    async with raw_client(address) as busy, raw_client(address) as idle:
        busy.send(headers(path=PATH), data(wrapped(b"busy")))
        await entered.wait()
        await idle.until(Kind.SETTINGS, ack=True)
        async with raw_client(address) as other:
            other.send(headers(path=PATH), data(wrapped(b"other")))
            await other.until(Kind.SETTINGS, ack=True)
            assert (await idle.until(Kind.GOAWAY)).code == Code.NO_ERROR
            assert await idle.hung_up()
            async with raw_client(address) as refused:
                assert await refused.hung_up()
            let_go.set()
            assert (await other.answer()).data == wrapped(b"other")
            assert (await busy.answer()).data == wrapped(b"busy")
    await server.stop()
