"""Three thousand mutated HTTP/2 sessions, the same ones every time, against the real connection: it never fails.

A session ends with a farewell or goes on; whatever it was, nothing of it is left when the client is gone, and the
process serves the next one.
"""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
import uvloop
from hypothesis import strategies as st

from gateway.http2.call import CallContext, Methods
from gateway.http2.calls import Desk
from gateway.http2.connection import Connection
from gateway.http2.connections import Connections
from gateway.settings import ServerLimits
from tests.gateway.http2.raw_client import GET_GOING, block, data, headers, wrapped
from tests.gateway.mutations import for_each
from worker.http2 import frames as http2
from worker.http2.frames import Code, Flag, Kind

PATH = "/a.B/Echo"

streams = st.sampled_from([1, 1, 1, 3, 3, 5, 7, 0, 2, (1 << 31) - 1])
flags = st.sampled_from([0, 1, 4, 5, 8, 32, 44, 255])
payloads = st.binary(max_size=40)
numbers = st.sampled_from([0, 1, 16384, 65535, (1 << 31) - 1, (1 << 32) - 1])

frames = st.one_of(
    st.builds(lambda stream: headers(stream, path=PATH), streams),
    st.builds(lambda stream, more: headers(stream, path=PATH, **more), streams, st.just({"grpc-encoding": "gzip"})),
    st.builds(lambda stream: headers(stream, path="/a.B/Stream"), streams),
    st.builds(lambda stream: data(wrapped(b"hello"), stream), streams),
    st.builds(lambda stream, flag: data(wrapped(b"hello", flag), stream, 0), streams, st.integers(0, 2)),
    st.builds(lambda stream, flag, payload: data(payload, stream, flag), streams, flags, payloads),
    st.builds(lambda stream: http2.reset(stream, Code.CANCEL), streams),
    st.builds(http2.window_update, streams, numbers),
    st.builds(lambda size: http2.settings(INITIAL_WINDOW_SIZE=size), numbers),
    st.builds(lambda size: http2.settings(MAX_FRAME_SIZE=size), numbers),
    st.builds(http2.frame, st.integers(0, 12), flags, streams, payloads),
    st.builds(lambda stream: http2.frame(Kind.HEADERS, 0, stream, block(PATH)[:20]), streams),
    st.builds(lambda stream: http2.frame(Kind.CONTINUATION, Flag.END_HEADERS, stream, block(PATH)[20:]), streams),
    st.just(http2.goaway(0, Code.NO_ERROR)),
)


@st.composite
def sessions(draw: st.DrawFn) -> bytes:
    """Three good calls, frames of all kinds in between, and in half of the sessions a few bytes changed."""
    parts = [part for stream in (1, 3, 5) for part in (headers(stream, path=PATH), data(wrapped(b"hello"), stream))]
    for _ in range(draw(st.integers(0, 5))):
        parts.insert(draw(st.integers(0, len(parts))), draw(frames))
    session = bytearray(GET_GOING + b"".join(parts))
    for _ in range(draw(st.sampled_from([0, 0, 1, 4]))):
        place = draw(st.integers(0, len(session) - 1))
        session[place : place + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
    return bytes(session)


class Wire(asyncio.Transport):
    """A transport that keeps what was written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()
        self.closed = False

    def write(self, data: Any) -> None:
        self.written += data

    def writelines(self, list_of_data: Any) -> None:
        for one in list_of_data:
            self.written += one

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    abort = close


async def echo(message: bytes, _: CallContext) -> bytes:
    await asyncio.sleep(0)
    return message


async def echo_stream(messages: Any, _: CallContext) -> Any:
    async for message in messages:
        yield message


METHODS = Methods(unary={PATH: echo}, streaming={"/a.B/Stream": echo_stream})


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        yield runner.get_loop()


def test_mutated_sessions_never_break_the_server(loop: asyncio.AbstractEventLoop) -> None:
    desk = Desk(METHODS, ServerLimits(max_streams=3, max_message_bytes=1000, max_receiving_bytes=2000))
    outcomes = {"answered": 0, "farewell": 0}

    def check(session: bytes) -> None:
        written = loop.run_until_complete(_serve(desk, session))
        outcomes["answered"] += wrapped(b"hello") in written
        outcomes["farewell"] += http2.frame_header(8, Kind.GOAWAY, 0, 0)[3:5] in written

    for_each(sessions(), 3000, check)
    assert outcomes["answered"] > 100
    assert outcomes["farewell"] > 100


async def _serve(desk: Desk, session: bytes) -> bytes:
    others, wire = Connections(1), Wire()
    connection = Connection(desk, others)
    connection.connection_made(wire)
    size = 1 + len(session) % 50
    for start in range(0, len(session), size):
        if not wire.closed:
            connection.data_received(session[start : start + size])
            await asyncio.sleep(0)
    for _ in range(5):
        await asyncio.sleep(0)
    for later in (0.0, 100.0, 200.0):
        connection.look(connection.heard_at + later)
    connection.connection_lost(None)
    for _ in range(3):
        await asyncio.sleep(0)
    assert (desk.calls, desk.receiving, len(others)) == (0, 0, 0)
    assert len(asyncio.all_tasks()) == 1
    return bytes(wire.written)
