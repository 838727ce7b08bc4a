"""What a connection's calls cost and how they end, whatever a client or a handler does; over a real socket."""

import asyncio
import threading
import zlib
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from gateway.http2.call import CallContext, Methods, Streaming, Unary
from gateway.http2.calls import UNPACKED_HERE_BYTES
from gateway.http2.grpc_server import GrpcServer
from gateway.settings import ServerLimits
from tests.gateway.http2.raw_client import RawClient, data, headers, raw_client, wrapped

PATH = "/a.B/Call"


@asynccontextmanager
async def serving(
    call: Unary | None = None, stream: Streaming | None = None, limits: ServerLimits | None = None
) -> AsyncIterator[tuple[GrpcServer, RawClient]]:
    """A server of one call, unary or streaming, and a client."""
    methods = Methods({PATH: call} if call else {}, {PATH: stream} if stream else {})
    server = GrpcServer(methods, limits or ServerLimits())
    port = await server.start("127.0.0.1", 0)
    try:
        async with raw_client(f"127.0.0.1:{port}") as client:
            yield server, client
    finally:
        await server.stop()


def address_of(client: RawClient) -> str:
    """Of the server that it talks to."""
    host, port = client.writer.get_extra_info("peername")
    return f"{host}:{port}"


async def length_of(message: bytes, _: CallContext) -> bytes:
    return str(len(message)).encode()


@pytest.mark.parametrize("size", [UNPACKED_HERE_BYTES, UNPACKED_HERE_BYTES + 1, 60_000_000])
async def test_a_message_that_unpacks_to_much_is_unpacked_in_one_thread(size: int) -> None:
    packed = wrapped(zlib.compress(bytes(size)), 1)
    async with serving(length_of) as (server, client):
        client.send(*(headers(stream, path=PATH, grpc_encoding="deflate") + data(packed, stream) for stream in (1, 3)))
        for stream in (1, 3):
            answer = await client.answer(stream)
            assert answer.data == wrapped(str(size).encode())
        threads = [thread for thread in threading.enumerate() if thread.name.startswith("unpacking")]
        assert len(threads) == (size > UNPACKED_HERE_BYTES)
        assert (server.calls, server.receiving) == (0, 0)


async def test_what_was_unpacked_counts_as_received_until_it_is_handed_on() -> None:
    packed = wrapped(zlib.compress(bytes(1_000_000)), 1)
    async with serving(length_of, limits=ServerLimits(max_receiving_bytes=1_900_000)) as (server, client):
        client.send(headers(path=PATH, grpc_encoding="deflate"), data(packed))
        assert (await client.answer()).headers["grpc-status"] == "8"
        assert (server.calls, server.receiving) == (0, 0)


async def cancelled(_: bytes, __: CallContext) -> bytes:
    raise asyncio.CancelledError


async def timed_out(_: bytes, __: CallContext) -> bytes:
    raise TimeoutError


async def no_bytes(_: bytes, __: CallContext) -> bytes:
    return None  # type: ignore[return-value]


async def no_bytes_either(_: bytes, __: CallContext) -> bytes:
    return 10 * ["a"]  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("call", "status"), [(cancelled, "14"), (timed_out, "13"), (no_bytes, "13"), (no_bytes_either, "13")]
)
async def test_a_call_is_answered_however_its_handler_ends(call: Unary, status: str) -> None:
    async with serving(call) as (server, client):
        client.send(headers(path=PATH), data(wrapped(b"")))
        assert (await client.answer()).headers["grpc-status"] == status
        assert (server.calls, server.receiving) == (0, 0)


@pytest.mark.parametrize(("error", "status"), [(asyncio.CancelledError(), "14"), (TimeoutError(), "13")])
async def test_a_streaming_call_is_answered_however_its_handler_ends(error: BaseException, status: str) -> None:
    async def fails(_: AsyncIterator[bytes], __: CallContext) -> AsyncGenerator[bytes, None]:
        yield b"one"
        raise error

    async with serving(stream=fails) as (server, client):
        client.send(headers(path=PATH, grpc_timeout="1H"), data(wrapped(b"")))
        answer = await client.answer()
        assert (answer.data, answer.headers["grpc-status"]) == (wrapped(b"one"), status)
        assert server.calls == 0


async def echo_stream(messages: AsyncIterator[bytes], _: CallContext) -> AsyncGenerator[bytes, None]:
    async for message in messages:
        yield message


@pytest.mark.parametrize("end", [data(b"\0\0\0\0\1"), data(b"\0\0", 1, 0) + data(b"")])
async def test_a_streaming_call_that_ends_inside_a_message_is_refused(end: bytes) -> None:
    async with serving(stream=echo_stream) as (_, client):
        client.send(headers(path=PATH), end)
        answer = await client.answer()
        assert (answer.headers["grpc-status"], answer.headers["grpc-message"]) == (
            "3",
            "the call ended inside a message",
        )


async def test_requests_that_never_end_keep_nobody_else_out() -> None:
    limits = ServerLimits(max_calls=1, max_arriving=8, max_receiving_bytes=9000)
    async with serving(length_of, limits=limits) as (_, hog), raw_client(address_of(hog)) as other:
        hog.send(*(headers(stream, path=PATH) for stream in range(1, 10, 2)))
        assert (await hog.answer(9)).headers["grpc-status"] == "8"
        hog.send(*(data(wrapped(bytes(2000))[:1100], stream, 0) for stream in range(1, 10, 2)))
        assert (await hog.answer(7)).headers["grpc-status"] == "8"
        other.send(headers(path=PATH), data(wrapped(bytes(900))))
        assert (await other.answer()).data == wrapped(b"900")
        hog.send(data(wrapped(bytes(2000))[1100:], 1))
        assert (await hog.answer(1)).data == wrapped(b"2000")


@pytest.mark.parametrize(
    ("said", "http", "message"),
    [
        ({":method": "GET"}, "405", "gRPC calls are POST requests"),
        ({"content_type": None}, "415", "gRPC calls have the content-type application%2Fgrpc"),
        ({"content_type": "text/html"}, "415", "gRPC calls have the content-type application%2Fgrpc"),
        ({"content_type": "application/grpc-web"}, "415", "gRPC calls have the content-type application%2Fgrpc"),
    ],
)
async def test_what_is_not_grpc_is_told_so_in_http_too(said: dict[str, Any], http: str, message: str) -> None:
    async with serving(length_of) as (server, client):
        client.send(headers(path=PATH, **said), data(b"x"))
        answer = await client.answer()
        assert (answer.headers[":status"], answer.headers["grpc-status"]) == (http, "3")
        assert answer.headers["grpc-message"].replace("/", "%2F") == message
        assert server.calls == 0


@pytest.mark.parametrize("kind", ["application/grpc", "application/grpc+proto", "application/grpc;charset=utf-8"])
async def test_each_content_type_of_grpc_is_taken(kind: str) -> None:
    async with serving(length_of) as (_, client):
        client.send(headers(path=PATH, content_type=kind), data(wrapped(b"abc")))
        answer = await client.answer()
        assert (answer.headers[":status"], answer.data) == ("200", wrapped(b"3"))


async def time_left(_: bytes, context: CallContext) -> bytes:
    return repr(context.time_remaining()).encode()


async def test_a_timeout_over_the_wire_is_read_in_each_unit() -> None:
    given = {
        "3H": 10800.0,
        "2M": 120.0,
        "99999999S": 99999999.0,
        "70000m": 70.0,
        "80000000u": 80.0,
        "0S": 0.0,
        "9n": 0.0,
    }
    async with serving(time_left) as (_, client):
        for stream, (timeout, seconds) in enumerate(given.items()):
            client.send(headers(2 * stream + 1, path=PATH, grpc_timeout=timeout), data(wrapped(b""), 2 * stream + 1))
            answer = await client.answer(2 * stream + 1)
            assert float(answer.data[5:]) == pytest.approx(seconds, abs=5)
            assert float(answer.data[5:]) <= seconds


async def test_a_timeout_over_the_wire_that_cannot_be_read_is_refused() -> None:
    async with serving(time_left) as (server, client):
        for stream, timeout in enumerate(["", "5", "S", "-1S", "123456789S", "1.5S", "5s", "5 S", "5SS", "0x1S"]):
            client.send(headers(2 * stream + 1, path=PATH, grpc_timeout=timeout), data(wrapped(b""), 2 * stream + 1))
            answer = await client.answer(2 * stream + 1)
            assert answer.headers["grpc-status"] == "3"
            assert "grpc-timeout is at most eight digits and a unit" in answer.headers["grpc-message"]
        assert server.calls == 0
