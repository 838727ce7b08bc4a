"""A client that speaks HTTP/2 frame by frame, and may break every rule."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from tests.gateway.stock import MODEL_INFER, good_request
from worker.http2 import frames as http2
from worker.http2.frames import Code, Flag, Kind
from worker.http2.hpack import HeaderDecoder, encode

GET_GOING = http2.PREFACE + http2.settings()


@dataclass(frozen=True)
class Frame:
    kind: int
    flags: int
    stream: int
    payload: bytes

    @property
    def code(self) -> Code:
        """Of RST_STREAM and GOAWAY."""
        start = 4 if self.kind == Kind.GOAWAY else 0
        return Code(int.from_bytes(self.payload[start : start + 4], "big"))


@dataclass
class Answer:
    """What came back on a stream: its headers and trailers together, and its bytes."""

    headers: dict[str, str]
    data: bytes
    reset: Code | None = None


class RawClient:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer
        self._decoder: HeaderDecoder[dict[str, str]] = HeaderDecoder(1 << 20, dict)
        self.seen: list[Frame] = []

    def send(self, *frames: bytes) -> None:
        self.writer.write(b"".join(frames))

    async def frame(self) -> Frame | None:
        """The next one; None: the server has hung up."""
        try:
            async with asyncio.timeout(60):
                header = await self._reader.readexactly(http2.FRAME_HEADER_BYTES)
                length, kind, flags, stream = http2.read_frame_header(header, 0)
                frame = Frame(kind, flags, stream, await self._reader.readexactly(length))
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        self.seen.append(frame)
        return frame

    async def until(self, kind: Kind, *, ack: bool | None = None) -> Frame:
        """The next frame of a kind; fails where the server hangs up before it."""
        while True:
            frame = await self.frame()
            if frame is None:
                raise AssertionError(f"the server hung up before {kind.name}; it sent {self.seen}")
            if frame.kind == kind and (ack is None or bool(frame.flags & Flag.ACK) == ack):
                return frame

    async def answer(self, stream: int = 1) -> Answer:
        """All of one stream's answer."""
        answer, received = Answer({}, b""), bytearray()
        while True:
            frame = await self.frame()
            if frame is None:
                raise AssertionError(f"the server hung up; it sent {self.seen}")
            if frame.stream != stream:
                if frame.kind == Kind.HEADERS:
                    self._decoder.decode(frame.payload)
                continue
            if frame.kind == Kind.HEADERS:
                answer.headers.update(self._decoder.decode(frame.payload))
            elif frame.kind == Kind.DATA:
                received += frame.payload
            elif frame.kind == Kind.RST_STREAM:
                return Answer(answer.headers, bytes(received), frame.code)
            if frame.flags & Flag.END_STREAM and frame.kind in {Kind.HEADERS, Kind.DATA}:
                return Answer(answer.headers, bytes(received))

    async def hung_up(self) -> bool:
        while await self.frame() is not None:
            pass
        return True


@asynccontextmanager
async def raw_client(address: str, greeting: bytes = GET_GOING) -> AsyncIterator[RawClient]:
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    client = RawClient(reader, writer)
    client.send(greeting)
    try:
        yield client
    finally:
        writer.close()


def headers(stream: int = 1, flags: int = Flag.END_HEADERS, path: str = MODEL_INFER, **more: Any) -> bytes:
    return http2.frame(Kind.HEADERS, flags, stream, block(path, **more))


def raw_headers(packed: bytes) -> bytes:
    """A header block of one's own making."""
    return http2.frame(Kind.HEADERS, Flag.END_HEADERS, 1, packed)


def block(path: str = MODEL_INFER, **more: Any) -> bytes:
    """A call's headers; `more` with "_" for "-", None takes a usual one away."""
    usual = {":method": "POST", ":scheme": "http", ":path": path, "content-type": "application/grpc", "te": "trailers"}
    usual.update({name.replace("_", "-"): value for name, value in more.items()})
    return encode(*((name, value) for name, value in usual.items() if value is not None))


def wrapped(message: bytes, flag: int = 0) -> bytes:
    return bytes((flag,)) + len(message).to_bytes(4, "big") + message


def data(payload: bytes, stream: int = 1, flags: int = Flag.END_STREAM) -> bytes:
    return http2.frame(Kind.DATA, flags, stream, payload)


def call(stream: int = 1, **more: Any) -> bytes:
    """A whole good call."""
    return headers(stream, **more) + data(wrapped(good_request()), stream)
