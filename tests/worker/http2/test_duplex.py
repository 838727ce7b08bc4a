"""A call of messages both ways: between our ends, and with gRPC's own at either end."""

import asyncio
import contextlib
import random
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import grpc
import grpc.aio
import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.http2 import frames as http2
from worker.http2.accept import Accepted
from worker.http2.dial import Dialled, dial
from worker.http2.duplex import FRAME_BYTES, WINDOW, Duplex, Ended, Keepalive
from worker.http2.frames import Code, Flag, Kind
from worker.http2.hpack import encode
from worker.http2.listen import Listener

METHOD = "/some.Service/Stream"
MOST = 4 << 20
PATIENT = Keepalive(30.0, 30.0)

Serve = Callable[[Accepted], Coroutine[Any, Any, None]]


async def echo(call: Accepted) -> None:
    with contextlib.suppress(Ended):
        while True:
            await call.write(await call.read())
    call.finish(grpc.StatusCode.OK)


@contextlib.asynccontextmanager
async def serving(
    serve: Serve = echo, *, keepalive: Keepalive = PATIENT, greeting_s: float = 30.0, max_waiting: int = 256
) -> AsyncIterator[str]:
    """Yields the address; fails where the event loop caught an error."""
    caught: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: caught.append(context))
    listener = Listener(
        lambda call: None if call.method == METHOD else (grpc.StatusCode.UNIMPLEMENTED, "no such method"),
        serve,
        max_message_bytes=MOST,
        keepalive=keepalive,
        greeting_s=greeting_s,
        max_waiting=max_waiting,
    )
    try:
        yield f"127.0.0.1:{await listener.listen('127.0.0.1', 0)}"
    finally:
        await listener.close(0.0)
        asyncio.get_running_loop().set_exception_handler(None)
    assert not caught


@contextlib.asynccontextmanager
async def dialled(address: str, keepalive: Keepalive = PATIENT) -> AsyncIterator[Dialled]:
    call = await dial(address, METHOD, (), max_message_bytes=MOST, keepalive=keepalive)
    try:
        yield call
    finally:
        call.close()


def message(size: int) -> bytes:
    return random.Random(size).randbytes(size)


async def echoes(call: Dialled, sizes: list[int]) -> None:
    """Writes ahead of what comes back, which is whole and in order."""

    async def write() -> None:
        for size in sizes:
            await call.write(message(size))

    writing = asyncio.create_task(write())
    for size in sizes:
        assert await call.read() == message(size)
    await writing


@settings(max_examples=20, deadline=None)
@given(st.lists(st.sampled_from([0, 1, 4, 5, 16_379, 16_384, 65_530, 65_536, 1 << 20, MOST]), min_size=1, max_size=12))
def test_what_is_written_is_read_whole_and_in_order(sizes: list[int]) -> None:
    async def both_ways() -> None:
        async with serving() as address, dialled(address) as call:
            await echoes(call, sizes)

    uvloop.run(asyncio.wait_for(both_ways(), 60))  # as workers and gateways run


def test_a_socket_that_takes_little_at_a_time_keeps_the_order() -> None:
    sizes = [1, 100_000, 7, MOST, 0, 300_000, 20]

    def narrowed(call: Duplex) -> None:
        call._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)

    async def narrow_echo(call: Accepted) -> None:
        narrowed(call)
        await echo(call)

    async def both_ways() -> None:
        async with serving(narrow_echo) as address, dialled(address) as call:
            narrowed(call)
            await echoes(call, sizes)

    uvloop.run(asyncio.wait_for(both_ways(), 60))


async def test_a_write_to_who_cut_the_connection_says_so() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        call = await dial(f"127.0.0.1:{server.getsockname()[1]}", METHOD, (), max_message_bytes=MOST, keepalive=PATIENT)
        peer, _ = server.accept()
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.close()  # resets it
        with pytest.raises(Ended, match="Connection reset by peer"):
            await call.write(b"something")
        call.close()


async def test_a_stock_caller_is_served_large_messages_and_small_ones() -> None:
    options = [("grpc.max_receive_message_length", -1)]
    async with serving() as address, grpc.aio.insecure_channel(address, options=options) as channel:
        call: grpc.aio.StreamStreamCall[bytes, bytes] = channel.stream_stream(METHOD)()
        for size in (0, 1, 100_000, MOST, 7):
            await call.write(message(size))
            assert await call.read() == message(size)
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
        assert await call.code() is grpc.StatusCode.OK


async def test_a_stock_server_is_called_and_its_status_told() -> None:
    async def serve(_: object, context: "grpc.aio.ServicerContext[bytes, bytes]") -> None:
        for _ in range(3):
            await context.write(await context.read())
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "that is 100% wrong: ä")

    server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
    handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.stream_stream_rpc_method_handler(serve)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("some.Service", {"Stream": handler}),))
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    try:
        async with dialled(address) as call:
            for size in (3, 300_000, MOST):
                await call.write(message(size))
                assert await call.read() == message(size)
            with pytest.raises(Ended, match="INVALID_ARGUMENT: that is 100% wrong: ä"):
                await call.read()
        wrong = await dial(address, "/some.Service/Other", (), max_message_bytes=MOST, keepalive=PATIENT)
        with pytest.raises(Ended, match="UNIMPLEMENTED"):
            await wrong.read()
        wrong.close()
    finally:
        await server.stop(0)


async def test_who_is_not_read_is_held_up_and_goes_on_later() -> None:
    go_on = asyncio.Event()
    read: list[bytes] = []

    async def late(call: Accepted) -> None:
        await go_on.wait()
        while len(read) < 12:
            read.append(await call.read())
        call.finish(grpc.StatusCode.OK)

    async with serving(late) as address, dialled(address) as call:
        written = 0

        async def write() -> None:
            nonlocal written
            for _ in range(12):
                await call.write(message(MOST))
                written += 1

        writing = asyncio.create_task(write())
        done, _ = await asyncio.wait((writing,), timeout=0.5)
        assert not done
        assert written * MOST <= WINDOW
        go_on.set()
        await asyncio.wait_for(writing, 30)
        with pytest.raises(Ended, match="closed the stream"):
            await asyncio.wait_for(call.read(), 30)
        assert read == [message(MOST)] * 12


async def test_a_call_that_is_withdrawn_ends_at_the_other_end() -> None:
    ended: asyncio.Queue[str] = asyncio.Queue()

    async def serve(call: Accepted) -> None:
        try:
            await call.read()
        except Ended as error:
            ended.put_nowait(str(error))

    async with serving(serve) as address:
        async with dialled(address):
            pass
        assert await asyncio.wait_for(ended.get(), 10)


async def test_a_peer_that_falls_silent_is_given_up() -> None:
    async with silent() as address, dialled(address, Keepalive(0.05, 0.1)) as call:
        began = time.monotonic()
        with pytest.raises(Ended, match=r"no answer to a probe within 0\.1 s"):
            await asyncio.wait_for(call.read(), 10)
        assert time.monotonic() - began < 5


async def test_a_healthy_peer_is_kept_though_this_process_stood_still() -> None:
    async with serving(keepalive=Keepalive(0.02, 0.05)) as address, dialled(address, Keepalive(0.02, 0.05)) as call:
        for _ in range(3):
            await asyncio.sleep(0.03)  # a probe is on its way
            time.sleep(0.3)  # noqa: ASYNC251 - that is what is tried
            await call.write(b"still here")
            assert await call.read() == b"still here"


@contextlib.asynccontextmanager
async def silent() -> AsyncIterator[str]:
    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(65_536):
            pass
        writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


async def raw(address: str, data: bytes) -> bytes:
    """All that the other end says to `data`, until it hangs up."""
    host, port = address.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(data)
    try:
        return await asyncio.wait_for(reader.read(-1), 20)
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


_HELLO = http2.PREFACE + http2.settings()
_CALL = http2.frame(
    Kind.HEADERS, Flag.END_HEADERS, 1, encode((":method", "POST"), (":scheme", "http"), (":path", METHOD))
)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"GET / HTTP/1.1\r\n\r\n" + bytes(20), b"not an HTTP/2 client"),
        (_HELLO + http2.frame(Kind.DATA, 0, 1, b"x"), b"belong to no call"),
        (_HELLO + _CALL + http2.frame(Kind.DATA, Flag.PADDED, 1, b"\1xx"), b"padding"),
        (_HELLO + _CALL + http2.frame(Kind.DATA, 0, 1, b"\1" + bytes(4)), b"compressed"),
        (_HELLO + _CALL + http2.frame(Kind.DATA, 0, 1, b"\0\xff\xff\xff\xff"), b"a message of 4294967295 bytes"),
        (_HELLO + _CALL + http2.frame_header(FRAME_BYTES + 1, Kind.DATA, 0, 1), b"fewer were allowed"),
        (_HELLO + http2.frame_header(20_000, Kind.HEADERS, 4, 1), b"holds no data"),
        (_HELLO + http2.frame(Kind.HEADERS, 0, 1, b""), b"headers of over"),
        (_HELLO + http2.frame(Kind.HEADERS, 4, 1, b"\xff\xff\xff\xff\xff\xff"), b""),
        (_HELLO + http2.frame(Kind.HEADERS, 4, 2, encode((":path", METHOD))), b"not a call"),
        (_HELLO + http2.frame(Kind.WINDOW_UPDATE, 0, 0, b"\x7f\xff\xff\xff"), b"over 2 GiB"),
        (_HELLO + http2.frame(Kind.PING, 0, 0, b"short"), b"PING frame of 5"),
        (_HELLO + http2.settings(INITIAL_WINDOW_SIZE=(1 << 31)), b"INITIAL_WINDOW_SIZE"),
        (_HELLO + http2.settings(MAX_FRAME_SIZE=1), b"MAX_FRAME_SIZE"),
    ],
)
async def test_what_breaks_the_protocol_ends_the_connection_with_the_reason(data: bytes, said: bytes) -> None:
    async with serving() as address:
        assert said in await raw(address, data)
        async with dialled(address) as call:
            await call.write(b"the next")
            assert await call.read() == b"the next"


async def test_a_connection_that_begins_no_call_is_cut() -> None:
    async with serving(greeting_s=0.1) as address:
        for data in (b"", http2.PREFACE[:5], _HELLO):
            await raw(address, data)


async def test_of_connections_without_a_call_the_oldest_makes_room() -> None:
    async with serving(max_waiting=2) as address, dialled(address) as call:
        host, port = address.split(":")
        waiting = [await asyncio.open_connection(host, int(port)) for _ in range(4)]
        for reader, _ in waiting[:2]:
            with contextlib.suppress(ConnectionResetError):
                await asyncio.wait_for(reader.read(-1), 10)
        assert not any(reader.at_eof() for reader, _ in waiting[2:])
        await call.write(b"calls are left alone")
        assert await call.read() == b"calls are left alone"
        for _, writer in waiting:
            writer.close()


async def test_who_asks_on_and_on_and_reads_nothing_is_hung_up_on() -> None:
    ping = http2.frame(Kind.PING, 0, 0, bytes(8))
    async with serving() as address:
        assert b"too many frames before a call" in await raw(address, _HELLO + ping * 100)
        host, port = address.split(":")
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(_HELLO + _CALL)

        async def ask_on_and_on() -> None:
            while True:
                writer.write(ping * 10_000)
                await writer.drain()

        with pytest.raises(ConnectionError):
            await asyncio.wait_for(ask_on_and_on(), 30)


async def test_a_call_of_another_method_is_refused() -> None:
    async with serving() as address:
        call = await dial(address, "/some.Service/Other", (), max_message_bytes=MOST, keepalive=PATIENT)
        with pytest.raises(Ended, match="UNIMPLEMENTED: no such method"):
            await call.read()
        call.close()


async def test_a_second_call_on_a_connection_is_refused_alone() -> None:
    async with serving() as address:
        second = http2.frame(Kind.HEADERS, 4, 3, encode((":path", METHOD)))
        end = http2.frame(Kind.DATA, Flag.END_STREAM, 1, b"")
        answer = await raw(address, _HELLO + _CALL + second + end)
        assert http2.reset(3, Code.REFUSED_STREAM) in answer
        assert b"grpc-status" in answer


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_mutated_bytes_crash_nothing(data: st.DataObject) -> None:
    """Several in a row at one server, which then still serves."""
    whole = _HELLO + _CALL + http2.frame(Kind.DATA, 0, 1, b"\0\0\0\0\3abc") + http2.frame(Kind.PING, 0, 0, bytes(8))
    end = http2.frame(Kind.RST_STREAM, 0, 1, bytes(4))
    changed = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(st.integers(len(http2.PREFACE), len(changed) - 1))
        changed[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))

    async def attempt() -> None:
        async with serving(greeting_s=0.05, keepalive=Keepalive(0.05, 0.05)) as address:
            await raw(address, bytes(changed) + end)
            async with dialled(address) as call:
                await call.write(b"the next")
                assert await call.read() == b"the next"

    asyncio.run(asyncio.wait_for(attempt(), 60))
