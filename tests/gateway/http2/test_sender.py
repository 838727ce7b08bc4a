"""Answers that do not fit: large ones, many at once, and clients that do not take them."""

import asyncio
from time import monotonic

import grpc

from gateway.http2.call import CallContext
from gateway.http2.connection import FRAME_BYTES, SEND_S
from gateway.http2.sender import MAX_WAITING_BYTES
from tests.effort import counted
from tests.gateway.http2.bare_server import bare
from tests.gateway.http2.raw_client import RawClient, call, data, headers, raw_client, wrapped
from tests.gateway.stock import channel, infer
from worker.http2 import frames as http2
from worker.http2.frames import Code, Kind

CLOSED_WINDOW = http2.PREFACE + http2.settings(INITIAL_WINDOW_SIZE=0)
PING = http2.frame(Kind.PING, 0, 0, b"12345678")


async def seen_by_server(client: RawClient) -> None:
    """Returns when the server has read all that was sent."""
    client.send(PING)
    await client.until(Kind.PING, ack=True)


async def test_a_stock_client_takes_large_answers_again_and_again() -> None:
    message = bytes(60_000_000)
    async with bare() as one, channel(one.address, ("grpc.max_receive_message_length", -1)) as raw:
        for _ in range(3):
            assert await infer(raw, message) == message
        assert len(one.connections) == 1
        assert one.desk.calls == 0


async def test_a_frame_is_never_larger_than_ours_however_large_a_client_allows() -> None:
    greeting = http2.PREFACE + http2.settings(MAX_FRAME_SIZE=(1 << 24) - 1, INITIAL_WINDOW_SIZE=1 << 24)

    async def large(_: bytes, __: CallContext) -> bytes:
        return bytes(1 << 20)

    async with bare(large) as one, raw_client(one.address, greeting) as client:
        client.send(http2.window_update(0, 1 << 24), call())
        answer = await client.answer()
        assert len(answer.data) == (1 << 20) + 5
        assert max(len(frame.payload) for frame in client.seen) == FRAME_BYTES


async def test_who_asks_is_told_when_a_calls_end_was_written_and_not_before() -> None:
    took: list[float] = []

    async def large(_: bytes, context: CallContext) -> bytes:
        context.tell_when_written(took.append)
        return bytes(100)

    async with bare(large) as one, raw_client(one.address, CLOSED_WINDOW) as client:
        began = monotonic()
        client.send(call(1), call(3))
        await seen_by_server(client)
        assert took == []
        client.send(http2.window_update(1, 1000))
        await client.answer(1)
        assert len(took) == 1
        assert 0 < took[0] < monotonic() - began


async def test_a_frame_of_settings_costs_little_however_many_answers_wait() -> None:
    name = http2.Setting.INITIAL_WINDOW_SIZE
    entries = b"".join(
        name.to_bytes(2, "big") + (number % 2).to_bytes(4, "big") for number in range(FRAME_BYTES // 6 - 1)
    )
    async with bare() as one, raw_client(one.address, CLOSED_WINDOW) as client:
        client.send(*(call(stream) for stream in range(1, 2001, 2)))
        await seen_by_server(client)
        with counted() as effort:
            client.send(http2.frame(Kind.SETTINGS, 0, 0, entries + name.to_bytes(2, "big") + (1).to_bytes(4, "big")))
            client.send(http2.frame(Kind.SETTINGS, 0, 0, entries))
            await seen_by_server(client)
        assert effort.lines < 500_000
        assert sum(len(frame.payload) for frame in client.seen if frame.kind == Kind.DATA) == 1000


async def test_a_window_of_one_stream_sends_that_stream_alone() -> None:
    async with bare() as one, raw_client(one.address, CLOSED_WINDOW) as client:
        client.send(*(headers(stream) + data(wrapped(b"abc"), stream) for stream in (1, 3, 5)))
        client.send(http2.window_update(3, 100))
        assert (await client.answer(3)).data == wrapped(b"abc")
        assert {frame.stream for frame in client.seen if frame.kind == Kind.DATA} == {3}


async def test_answers_share_a_connection_in_turn() -> None:
    greeting = http2.PREFACE + http2.settings(INITIAL_WINDOW_SIZE=1 << 20)
    message = wrapped(bytes(60_000))
    async with bare() as one, raw_client(one.address, greeting) as client:
        client.send(*(headers(stream) + data(message, stream) for stream in (1, 3, 5)))
        await seen_by_server(client)
        client.send(http2.window_update(0, 3 * 60_000))
        for _ in range(3):
            await client.until(Kind.DATA)
        assert {frame.stream for frame in client.seen if frame.kind == Kind.DATA} == {1, 3, 5}


async def test_an_answer_that_is_not_taken_is_thrown_away() -> None:
    async with bare() as one, raw_client(one.address, CLOSED_WINDOW) as client:
        client.send(call())
        await client.until(Kind.HEADERS)
        one.connection.look(monotonic())
        assert one.desk.calls == 1
        one.connection.look(monotonic() + SEND_S + 1)
        assert (await client.until(Kind.RST_STREAM)).code == Code.CANCEL
        assert one.desk.calls == 0
        client.send(http2.window_update(1, 1000), http2.settings(INITIAL_WINDOW_SIZE=1000), call(3))
        assert (await client.answer(3)).headers["grpc-status"] == "0"


async def test_an_answer_that_nobody_waits_for_any_more_is_thrown_away() -> None:
    async with bare() as one, raw_client(one.address, CLOSED_WINDOW) as client:
        client.send(headers(grpc_timeout="20m"), data(wrapped(b"abc")))
        await client.until(Kind.HEADERS)
        async with asyncio.timeout(10):
            while one.desk.calls:
                one.connection.look(monotonic())
                await asyncio.sleep(0)
        assert (await client.until(Kind.RST_STREAM)).code == Code.CANCEL


async def test_an_answer_for_which_too_much_waits_already_is_refused_alone() -> None:
    shared = bytes(16 << 20)

    async def large(_: bytes, __: CallContext) -> bytes:
        return shared

    async with bare(large) as one, raw_client(one.address, CLOSED_WINDOW) as client:
        last = 2 * (MAX_WAITING_BYTES // len(shared)) + 1
        client.send(*(call(stream) for stream in range(1, last + 1, 2)))
        refused = await client.answer(last - 2)
        assert refused.headers["grpc-status"] == str(grpc.StatusCode.RESOURCE_EXHAUSTED.value[0])
        assert "bytes of answers wait on this connection" in refused.headers["grpc-message"]
        client.send(http2.window_update(0, 1 << 30), http2.window_update(1, 1 << 30))
        assert len((await client.answer(1)).data) == len(shared) + 5, "the others are still sent"


async def test_an_answer_larger_than_all_that_may_wait_is_sent_where_none_waits() -> None:
    message = bytes(MAX_WAITING_BYTES + 1)

    async def large(_: bytes, __: CallContext) -> bytes:
        return message

    async with bare(large) as one, channel(one.address, ("grpc.max_receive_message_length", -1)) as raw:
        assert len(await infer(raw, b"")) == len(message)


async def test_a_window_that_does_not_fit_ends_its_stream_alone() -> None:
    async with bare() as one, raw_client(one.address, CLOSED_WINDOW) as client:
        client.send(call(1), headers(3), http2.window_update(1, 0))
        assert (await client.until(Kind.RST_STREAM)).code == Code.PROTOCOL_ERROR
        client.send(http2.window_update(3, http2.MAX_WINDOW), http2.window_update(3, 1))
        assert (await client.until(Kind.RST_STREAM)).code == Code.FLOW_CONTROL_ERROR
        client.send(call(5), http2.window_update(5, 1000))
        assert (await client.answer(5)).headers["grpc-status"] == "0"
