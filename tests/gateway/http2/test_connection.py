"""The gateway's HTTP/2, frame by frame: what RFC 9113 asks of a server, and what hostile clients try."""

import asyncio
import gzip
import zlib
from collections.abc import Callable

import grpc
import pytest

from gateway.http2.connection import CONNECTION_WINDOW, FRAME_BYTES, HEADER_BYTES, STREAM_WINDOW
from gateway.settings import ServerLimits
from protos import inference_pb2 as pb
from tests.gateway.backend import Running, running, served, spec
from tests.gateway.gate import Gate
from tests.gateway.http2.raw_client import (
    GET_GOING,
    RawClient,
    block,
    call,
    data,
    headers,
    raw_client,
    raw_headers,
    wrapped,
)
from tests.gateway.stock import ROWS, channel, good_request, infer
from worker.http2 import frames as http2
from worker.http2.frames import Code, Flag, Kind
from worker.http2.hpack import encode

OPEN = headers()
BAD_STARTS: list[tuple[str, bytes, Code]] = [
    ("another protocol", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", Code.PROTOCOL_ERROR),
    ("a TLS greeting", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(32), Code.PROTOCOL_ERROR),
    ("no SETTINGS", http2.PREFACE + http2.frame(Kind.PING, 0, 0, bytes(8)), Code.PROTOCOL_ERROR),
]
BAD_FRAMES: list[tuple[str, bytes, Code]] = [
    ("an enormous frame", http2.frame_header(FRAME_BYTES + 1, Kind.DATA, 0, 1), Code.FRAME_SIZE_ERROR),
    ("SETTINGS of a broken length", http2.frame(Kind.SETTINGS, 0, 0, bytes(5)), Code.FRAME_SIZE_ERROR),
    ("SETTINGS on a stream", http2.frame(Kind.SETTINGS, 0, 1), Code.PROTOCOL_ERROR),
    ("an ACK that holds something", http2.frame(Kind.SETTINGS, Flag.ACK, 0, bytes(6)), Code.FRAME_SIZE_ERROR),
    ("an impossible window", http2.settings(INITIAL_WINDOW_SIZE=1 << 31), Code.FLOW_CONTROL_ERROR),
    ("too small a frame size", http2.settings(MAX_FRAME_SIZE=16383), Code.PROTOCOL_ERROR),
    ("too large a frame size", http2.settings(MAX_FRAME_SIZE=1 << 24), Code.PROTOCOL_ERROR),
    ("a strange push setting", http2.settings(ENABLE_PUSH=2), Code.PROTOCOL_ERROR),
    ("PING of a wrong length", http2.frame(Kind.PING, 0, 0, bytes(7)), Code.FRAME_SIZE_ERROR),
    ("PING on a stream", http2.frame(Kind.PING, 0, 1, bytes(8)), Code.PROTOCOL_ERROR),
    ("GOAWAY on a stream", http2.frame(Kind.GOAWAY, 0, 1, bytes(8)), Code.PROTOCOL_ERROR),
    ("a push", http2.frame(Kind.PUSH_PROMISE, 0, 1, bytes(4)), Code.PROTOCOL_ERROR),
    ("PRIORITY that says nothing", http2.frame(Kind.PRIORITY, 0, 1, bytes(4)), Code.PROTOCOL_ERROR),
    ("a window update of nothing", http2.window_update(0, 0), Code.PROTOCOL_ERROR),
    ("a window of 2 GiB", http2.window_update(0, (1 << 31) - 1), Code.FLOW_CONTROL_ERROR),
    ("half a window update", http2.frame(Kind.WINDOW_UPDATE, 0, 0, bytes(2)), Code.FRAME_SIZE_ERROR),
    ("data of no stream", data(b"", 0), Code.PROTOCOL_ERROR),
    ("data of a stream that has not begun", data(b"x", 5), Code.PROTOCOL_ERROR),
    ("a reset of a stream that has not begun", http2.reset(5, Code.CANCEL), Code.PROTOCOL_ERROR),
    ("a window update of a stream that has not begun", http2.window_update(5, 1), Code.PROTOCOL_ERROR),
    ("half a reset", OPEN + http2.frame(Kind.RST_STREAM, 0, 1, bytes(3)), Code.FRAME_SIZE_ERROR),
    ("a stream of a server's number", headers(2), Code.PROTOCOL_ERROR),
    ("a call on a stream that is over", headers(3) + http2.reset(3, Code.CANCEL) + headers(1), Code.PROTOCOL_ERROR),
    ("stream 0", http2.frame(Kind.HEADERS, Flag.END_HEADERS, 0, block()) + data(b"", 0), Code.PROTOCOL_ERROR),
    ("headers within a call", OPEN + headers(), Code.PROTOCOL_ERROR),
    ("more padding than frame", OPEN + data(b"\x05abc", 1, Flag.PADDED), Code.PROTOCOL_ERROR),
    ("padding without a length", OPEN + data(b"", 1, Flag.PADDED), Code.PROTOCOL_ERROR),
    (
        "headers without their priority",
        http2.frame(Kind.HEADERS, Flag.END_HEADERS | Flag.PRIORITY, 1, bytes(4)),
        Code.FRAME_SIZE_ERROR,
    ),
    ("a continuation of nothing", http2.frame(Kind.CONTINUATION, Flag.END_HEADERS, 1, b"x"), Code.PROTOCOL_ERROR),
    ("a broken off header block", headers(1, 0) + http2.frame(Kind.PING, 0, 0, bytes(8)), Code.PROTOCOL_ERROR),
    (
        "a continuation of another stream",
        headers(1, 0) + http2.frame(Kind.CONTINUATION, Flag.END_HEADERS, 3, b"x"),
        Code.PROTOCOL_ERROR,
    ),
    ("an empty continuation", headers(1, 0) + http2.frame(Kind.CONTINUATION, 0, 1), Code.ENHANCE_YOUR_CALM),
    (
        "headers without an end",
        headers(1, 0) + http2.frame(Kind.CONTINUATION, 0, 1, bytes(HEADER_BYTES)) * 4,
        Code.ENHANCE_YOUR_CALM,
    ),
    (
        "a header that does not exist",
        http2.frame(Kind.HEADERS, Flag.END_HEADERS, 1, b"\xff\x7f"),
        Code.COMPRESSION_ERROR,
    ),
    ("a block that ends early", http2.frame(Kind.HEADERS, Flag.END_HEADERS, 1, b"\x00\x05ab"), Code.COMPRESSION_ERROR),
    (
        "a small block of large headers",
        raw_headers(b"\x40\x01a\x7f\xf1\x0e" + b"v" * 2032 + b"\xbe" * 70),
        Code.COMPRESSION_ERROR,
    ),
]


@pytest.mark.parametrize(("sent", "code"), [one[1:] for one in BAD_STARTS], ids=[one[0] for one in BAD_STARTS])
async def test_a_client_that_begins_wrongly_is_hung_up_on(sent: bytes, code: Code) -> None:
    async with running() as one, raw_client(one.address, sent) as client:
        assert (await client.until(Kind.GOAWAY)).code == code
        assert await client.hung_up()


@pytest.mark.parametrize(("sent", "code"), [one[1:] for one in BAD_FRAMES], ids=[one[0] for one in BAD_FRAMES])
async def test_a_client_that_breaks_the_protocol_is_told_and_hung_up_on(sent: bytes, code: Code) -> None:
    async with running() as one, raw_client(one.address) as client, raw_client(one.address) as other:
        client.send(sent)
        assert (await client.until(Kind.GOAWAY)).code == code
        assert await client.hung_up()
        other.send(call())
        assert (await other.answer()).headers["grpc-status"] == "0"
        assert one.gateway.calls == 0


def response(answer: bytes) -> pb.ModelInferResponse:
    assert answer[0] == 0
    assert len(answer) == 5 + int.from_bytes(answer[1:5], "big")
    return pb.ModelInferResponse.FromString(answer[5:])


async def check_good(client: RawClient, stream: int = 1) -> None:
    answer = await client.answer(stream)
    assert answer.headers == {":status": "200", "content-type": "application/grpc", "grpc-status": "0"}
    assert list(response(answer.data).raw_output_contents) == [ROWS.tobytes()]


async def test_a_request_may_come_byte_by_byte() -> None:
    async with running() as one, raw_client(one.address, b"") as client:
        for byte in GET_GOING + call():
            client.send(bytes((byte,)))
            await client.writer.drain()
        await check_good(client)


async def test_many_requests_may_come_in_one_packet() -> None:
    async with running() as one, raw_client(one.address) as client:
        client.send(*(call(stream) for stream in range(1, 41, 2)))
        answered = set()
        for _ in range(20):
            frame = await client.until(Kind.DATA)
            assert list(response(frame.payload).raw_output_contents) == [ROWS.tobytes()]
            answered.add(frame.stream)
        assert answered == set(range(1, 41, 2))


async def test_padding_and_priority_and_continuations_are_read() -> None:
    whole = block()
    first = http2.frame(Kind.HEADERS, Flag.PADDED | Flag.PRIORITY, 1, b"\x03" + bytes(5) + whole[:7] + bytes(3))
    second = http2.frame(Kind.CONTINUATION, 0, 1, whole[7:20])
    third = http2.frame(Kind.CONTINUATION, Flag.END_HEADERS, 1, whole[20:])
    message = wrapped(good_request())
    async with running() as one, raw_client(one.address) as client:
        client.send(first, second, third)
        client.send(data(b"\x02" + message[:3] + bytes(2), 1, Flag.PADDED), data(b"", 1, 0))
        client.send(http2.frame(Kind.PRIORITY, 0, 7, bytes(5)), http2.frame(99, 0, 0, b"of a later HTTP"))
        client.send(data(b"\x00" + message[3:], 1, Flag.PADDED | Flag.END_STREAM))
        await check_good(client)


async def test_a_clients_trailers_end_its_request() -> None:
    async with running() as one, raw_client(one.address) as client:
        client.send(headers(), data(wrapped(good_request()), 1, 0))
        client.send(http2.frame(Kind.HEADERS, Flag.END_HEADERS | Flag.END_STREAM, 1, b"\x00\x01a\x01b"))
        await check_good(client)


async def test_a_ping_is_answered_and_settings_are_acknowledged() -> None:
    async with running() as one, raw_client(one.address) as client:
        client.send(http2.frame(Kind.PING, 0, 0, b"12345678"))
        await client.until(Kind.SETTINGS, ack=True)
        assert (await client.until(Kind.PING, ack=True)).payload == b"12345678"


async def test_an_answer_leaves_in_pieces_as_the_clients_windows_let_it() -> None:
    tensor = spec("x", "FP32", ("batch", "n"))
    request = pb.ModelInferRequest(model_name="echo", raw_input_contents=[bytes(200_000)])
    request.inputs.add(name="x", datatype="FP32", shape=[1, 50_000])
    message = wrapped(request.SerializeToString())
    pieces = [data(message[start : start + FRAME_BYTES], 1, 0) for start in range(0, len(message), FRAME_BYTES)]
    greeting = http2.PREFACE + http2.settings(INITIAL_WINDOW_SIZE=1000)
    async with running(served(inputs=[tensor], outputs=[tensor])) as one, raw_client(one.address, greeting) as client:
        client.send(headers(), *pieces, data(b"", 1))
        got = [(await client.until(Kind.DATA)).payload]
        assert len(got[0]) == 1000
        client.send(http2.window_update(1, 500))
        got.append((await client.until(Kind.DATA)).payload)
        client.send(http2.settings(INITIAL_WINDOW_SIZE=1700))
        got.append((await client.until(Kind.DATA)).payload)
        assert [len(piece) for piece in got] == [1000, 500, 700]
        client.send(
            http2.settings(INITIAL_WINDOW_SIZE=0), http2.window_update(1, 1700), http2.window_update(1, 300_000)
        )
        held = 65_535 - 2200  # what is left of the connection's window
        while held:
            got.append((await client.until(Kind.DATA)).payload)
            held -= len(got[-1])
        client.send(http2.window_update(0, 1 << 20))
        answer = await client.answer()
        assert answer.headers["grpc-status"] == "0"
        whole = b"".join(got) + answer.data
        assert list(response(whole).raw_output_contents) == [bytes(200_000)]
        assert one.gateway.calls == 0


async def test_a_large_request_is_let_in_piece_by_piece() -> None:
    tensor = spec("x", "FP32", ("batch", "n"))
    request = pb.ModelInferRequest(model_name="echo", raw_input_contents=[bytes(40_000_000)])
    request.inputs.add(name="x", datatype="FP32", shape=[1, 10_000_000])
    message = wrapped(request.SerializeToString())
    async with running(served(inputs=[tensor], outputs=[tensor])) as one, raw_client(one.address) as client:
        client.send(headers())
        sent, on_stream, on_connection = 0, STREAM_WINDOW, CONNECTION_WINDOW
        while sent < len(message):
            size = min(FRAME_BYTES, on_stream, on_connection, len(message) - sent)
            if size:
                client.send(data(message[sent : sent + size], 1, 0))
                sent, on_stream, on_connection = sent + size, on_stream - size, on_connection - size
                continue
            await client.writer.drain()
            frame = await client.until(Kind.WINDOW_UPDATE)
            more = int.from_bytes(frame.payload, "big")
            on_stream, on_connection = on_stream + more * bool(frame.stream), on_connection + more * (not frame.stream)
        client.send(data(b"", 1), http2.window_update(0, 1 << 30), http2.window_update(1, 1 << 30))
        answer = await client.answer()
        assert len(response(answer.data).raw_output_contents[0]) == 40_000_000


@pytest.mark.parametrize(
    ("sent", "status", "message"),
    [
        (headers(path="/a.B/C"), "12", "this server has no call '/a.B/C'"),
        (headers(path="/" + "x" * 9000), "12", "this server has no call"),
        (http2.frame(Kind.HEADERS, Flag.END_HEADERS, 1, block(**{":method": "GET"})), "3", "POST"),
        (headers(content_type="text/html"), "3", "content-type application/grpc"),
        (headers(grpc_timeout="soon"), "3", "grpc-timeout is at most eight digits and a unit"),
        (headers(grpc_timeout="0n") + data(wrapped(good_request())), "4", "deadline had passed when it arrived"),
        (raw_headers(block() + b"\x40\x01a\x7f\xf1\x0e" + b"v" * 2032 + b"\xbe" * 40), "8", "headers of more than"),
        (headers() + data(b""), "3", "the call ended before its message began"),
        (headers() + data(b"\0\0\0"), "3", "the call ended before its message began"),
        (headers() + data(b"\0\0\0\0\5abc"), "3", "holds 3 bytes after its first prefix, which announces 5"),
        (headers() + data(wrapped(b"") * 2), "3", "it takes one message"),
        (headers() + data(wrapped(b""), 1, 0) + data(bytes(9), 1, 0), "3", "it takes one message"),
        (headers() + data(wrapped(b"", 2)), "3", "begins with neither 0 nor 1"),
        (headers() + data(wrapped(b"abc", 1)), "3", "names no grpc-encoding"),
        (headers(grpc_encoding="gzip") + data(wrapped(b"abc", 1)), "3", "is not the gzip that it says it is"),
        (headers(grpc_encoding="gzip") + data(wrapped(gzip.compress(b"abc")[:-9], 1)), "3", "ends too early"),
        (headers(grpc_encoding="snappy") + data(wrapped(b"abc", 1)), "12", "identity, deflate, gzip are"),
        (headers() + data(b"\0\x7f\xff\xff\xff", 1, 0), "8", "is larger than max: 67108864"),
        (headers() + data(b"\0\x7f\xff", 1, 0) + data(b"\xff\xff", 1, 0), "8", "is larger than max"),
    ],
)
async def test_a_call_that_is_wrong_ends_with_a_status_and_leaves_the_others_alone(
    sent: bytes, status: str, message: str
) -> None:
    async with running() as one, raw_client(one.address) as client:
        client.send(sent, call(3))
        answer = await client.answer(1)
        assert answer.headers["grpc-status"] == status
        assert message in answer.headers["grpc-message"].replace("%2F", "/")
        client.send(call(5))
        await check_good(client, 5)
        assert one.gateway.calls == 0
        assert one.gateway.receiving == 0


@pytest.mark.parametrize(
    "more",
    [
        (("Upper", "case"),),
        (("connection", "close"),),
        (("te", "gzip"),),
        (("a", "b"), (":authority", "late")),
        ((":path", "/a.B/C"), (":path", "/a.B/C")),
    ],
)
async def test_headers_that_http_forbids_end_their_stream_alone(more: tuple[tuple[str, str], ...]) -> None:
    async with running() as one, raw_client(one.address) as client:
        client.send(raw_headers(encode((":method", "POST"), *more)), call(3))
        reset = await client.until(Kind.RST_STREAM)
        assert (reset.stream, reset.code) == (1, Code.PROTOCOL_ERROR)
        await check_good(client, 3)
        assert one.gateway.calls == 0


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
async def test_a_compressed_message_is_unpacked(encoding: str) -> None:
    packed = (gzip if encoding == "gzip" else zlib).compress(good_request())
    async with running() as one, raw_client(one.address) as client:
        client.send(headers(grpc_encoding=encoding), data(wrapped(packed, 1)))
        await check_good(client)


async def test_a_call_that_is_refused_early_lets_the_client_stop_sending() -> None:
    async with running() as one, raw_client(one.address) as client:
        client.send(headers(path="/a.B/C"))
        answer = await client.answer()
        assert (answer.headers["grpc-status"], answer.headers["grpc-accept-encoding"]) == (
            "12",
            "identity,deflate,gzip",
        )
        assert (await client.until(Kind.RST_STREAM)).code == Code.NO_ERROR
        client.send(data(bytes(100), 1), call(3))
        await check_good(client, 3)


async def test_data_after_the_end_of_a_request_resets_the_stream() -> None:
    gate = Gate()
    async with running(serve=gate.serve) as one, raw_client(one.address) as client:
        client.send(call(), data(b"more", 1))
        assert (await client.until(Kind.RST_STREAM)).code == Code.STREAM_CLOSED
        await settled(one)


async def test_a_stream_over_the_bound_is_refused_so_that_the_client_may_try_again() -> None:
    gate = Gate()
    async with running(serve=gate.serve, limits=ServerLimits(max_streams=2)) as one, raw_client(one.address) as client:
        client.send(call(1), call(3), call(5))
        refused = await client.until(Kind.RST_STREAM)
        assert (refused.stream, refused.code) == (5, Code.REFUSED_STREAM)
        gate.open()
        await check_good(client, 1)


async def settled(one: Running) -> None:
    """Returns once no call is counted any more."""
    async with asyncio.timeout(60):
        while one.gateway.calls or one.inflight:  # noqa: ASYNC110 - it happens within the loop's next turns
            await asyncio.sleep(0)


async def test_a_thousand_calls_that_are_reset_at_once_leave_nothing_behind() -> None:
    gate = Gate()
    async with running(serve=gate.serve) as one, raw_client(one.address) as client:
        for stream in range(1, 2001, 2):
            client.send(call(stream), http2.reset(stream, Code.CANCEL))
        client.send(http2.frame(Kind.PING, 0, 0, b"12345678"))
        await client.until(Kind.PING, ack=True)
        await settled(one)
        assert one.gateway.receiving == 0
        gate.open()
        client.send(call(30_001))
        await check_good(client, 30_001)


RUSHES: dict[str, Callable[[int], bytes]] = {
    "resets": lambda number: call(2 * number + 1) + http2.reset(2 * number + 1, Code.CANCEL),
    "probes": lambda _: http2.frame(Kind.PING, 0, 0, bytes(8)),
    "settings": lambda _: http2.settings(),
    "empty data": lambda _: data(b"", 1, 0),
}


@pytest.mark.parametrize("rush", RUSHES.values(), ids=RUSHES.keys())
async def test_a_client_that_asks_for_work_without_end_is_hung_up_on(rush: Callable[[int], bytes]) -> None:
    gate, limits = Gate(), ServerLimits(rush_per_s=0.0)
    async with running(serve=gate.serve, limits=limits) as one, raw_client(one.address) as client:
        if rush is not RUSHES["resets"]:
            client.send(OPEN)
        client.send(*(rush(number) for number in range(20_000)))
        assert (await client.until(Kind.GOAWAY)).code == Code.ENHANCE_YOUR_CALM
        await settled(one)
        assert one.gateway.receiving == 0


async def test_a_connection_that_floods_leaves_the_others_their_turn() -> None:
    unbounded = served(max_inflight=0, deadline_s=100)
    async with running(unbounded) as one, raw_client(one.address) as flooding, raw_client(one.address) as other:
        other.send(call())
        await check_good(other)  # the way to the worker is open
        flooding.send(*(call(stream) for stream in range(1, 20_001, 2)))
        flooding.send(http2.frame(99, 0, 0) * 200_000)
        other.send(call(3))
        await check_good(other, 3)
        flooding.send(http2.frame(Kind.PING, 0, 0, b"12345678"))
        await flooding.until(Kind.PING, ack=True)


async def test_a_client_that_is_gone_leaves_nothing_behind() -> None:
    gate = Gate()
    async with running(serve=gate.serve) as one:
        async with raw_client(one.address) as client:
            client.send(call(1), call(3), headers(5), data(bytes(1000), 5, 0))
            await gate.until(entered=2)
        await gate.until(cancelled=2)
        await settled(one)
        assert one.gateway.receiving == 0


async def test_requests_that_arrive_beyond_the_bound_are_refused() -> None:
    limits = ServerLimits(max_receiving_bytes=100_000)
    async with running(limits=limits) as one, raw_client(one.address) as client:
        client.send(headers(1), data(b"\0\0\1\0\0" + bytes(60_000), 1, 0))
        client.send(headers(3), data(b"\0\0\1\0\0" + bytes(60_000), 3, 0))
        answer = await client.answer(3)
        assert answer.headers["grpc-status"] == "8"
        client.send(call(5))
        await check_good(client, 5)


async def test_a_request_that_never_ends_is_ended() -> None:
    async with running(limits=ServerLimits(receive_s=0.1)) as one, raw_client(one.address) as client:
        client.send(headers(), data(wrapped(good_request())[:-1], 1, 0))
        answer = await client.answer()
        assert answer.headers["grpc-status"] == "4"
        assert answer.headers["grpc-message"] == "the request did not arrive in time"
        assert one.gateway.receiving == 0


async def test_a_silent_client_is_asked_and_then_dropped() -> None:
    limits = ServerLimits(keepalive_s=0.1, keepalive_timeout_s=1.0)
    async with running(limits=limits) as one, raw_client(one.address) as client:
        ping = await client.until(Kind.PING)
        client.send(http2.frame(Kind.PING, Flag.ACK, 0, ping.payload))
        await client.until(Kind.PING)
        assert await client.hung_up()


async def test_a_client_that_does_not_even_greet_is_dropped() -> None:
    async with (
        running(limits=ServerLimits(greeting_s=0.1)) as one,
        raw_client(one.address, http2.PREFACE[:10]) as client,
        raw_client(one.address, http2.PREFACE) as other,
    ):
        assert await client.hung_up()
        assert await other.hung_up()


async def test_an_idle_connection_is_closed_in_order() -> None:
    async with running(limits=ServerLimits(idle_s=0.1)) as one, raw_client(one.address) as client:
        client.send(call())
        await check_good(client)
        assert (await client.until(Kind.GOAWAY)).code == Code.NO_ERROR


async def test_a_client_that_makes_us_write_and_does_not_read_is_dropped() -> None:
    async def flood(client: RawClient) -> None:
        while True:
            client.send(http2.frame(Kind.PING, 0, 0, bytes(8)) * 10_000)
            await client.writer.drain()

    async with running() as one, raw_client(one.address) as client:
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        with pytest.raises(ConnectionError):
            await asyncio.wait_for(flood(client), 60)
        async with raw_client(one.address) as other:
            other.send(call())
            await check_good(other)


async def test_a_server_that_leaves_answers_what_was_under_way_and_says_what_was_not_begun() -> None:
    gate = Gate()
    async with running(serve=gate.serve) as one, raw_client(one.address) as client:
        client.send(call(1))
        await gate.until(entered=1)
        stopping = asyncio.create_task(one.gateway.stop(10))
        first = await client.until(Kind.GOAWAY)
        assert int.from_bytes(first.payload[:4], "big") == http2.MAX_STREAM_ID
        client.send(call(3))  # sent before the client has read the farewell
        ping = await client.until(Kind.PING)
        client.send(http2.frame(Kind.PING, Flag.ACK, 0, ping.payload), call(5))
        last = await client.until(Kind.GOAWAY)
        assert int.from_bytes(last.payload[:4], "big") == 3
        await gate.until(entered=2)
        gate.open()
        await check_good(client, 1)
        await check_good(client, 3)
        client.writer.close()
        await asyncio.wait_for(stopping, 10)
        assert gate.entered == 2


async def test_a_client_that_says_goodbye_gets_its_answers() -> None:
    gate = Gate()
    async with running(serve=gate.serve) as one, raw_client(one.address) as client:
        client.send(call(1), http2.goaway(0, Code.NO_ERROR))
        await gate.until(entered=1)
        gate.open()
        await check_good(client, 1)


async def test_headers_too_large_for_a_call_leave_a_stock_clients_other_calls_alone() -> None:
    options = (("grpc.max_metadata_size", 1 << 20), ("grpc.absolute_max_metadata_size", 1 << 20))
    async with running() as one, channel(one.address, *options) as raw:
        for _ in range(2):
            with pytest.raises(grpc.aio.AioRpcError) as told:
                await infer(raw, metadata=[("large", "v" * 40_000)])
            assert told.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
            await infer(raw, metadata=[("small", "v" * 1000)])
        assert one.gateway.calls == 0
