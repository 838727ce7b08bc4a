"""What gRPC says beyond HTTP/2: how a call's headers read, how a message is wrapped, how a call ends."""

import re
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol, TypeAlias

import grpc

from worker.errors import InvalidRequest, TooLarge, Unsupported
from worker.http2.hpack import Header, encode
from worker.http2.status import CONTENT, OK_HEADERS, status_block

PREFIX_BYTES: Final = 5
"""Before each message: whether it is compressed, and its length, big-endian."""

ENCODINGS: Final = ("identity", "deflate", "gzip")

_CONTENT_TYPE: Final = re.compile(r"application/grpc([+;].*)?", re.IGNORECASE | re.DOTALL)
_TIMEOUT: Final = re.compile(r"([0-9]{1,8})([HMSmun])")
_UNIT_S: Final = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}


class MessageTooLarge(TooLarge):
    """Told with the status that gRPC's own servers tell it with."""

    code = 8


@dataclass(frozen=True, slots=True)
class Head:
    """A call's headers, read once. `timeout_s` None: the client waits for ever. `fault`: why it is not a gRPC call,
    which is told with `http_status`.
    """

    path: str
    timeout_s: float | None
    encoding: str
    metadata: Mapping[str, str]
    fault: str
    http_status: str = "200"


class CallContext(Protocol):
    """What a call may ask of the connection that it came by."""

    @property
    def metadata(self) -> Mapping[str, str]:
        """Header names in lower case, as the client sent them."""

    def time_remaining(self) -> float | None:
        """Seconds until the client's deadline, 0 when it has passed; None: it has none."""

    def tell_when_written(self, told: Callable[[float], None]) -> None:
        """Has `told` called once the call's end was handed to the socket, with the seconds since its last bytes were
        read from it. It is not called where the connection ends before.
        """


Unary: TypeAlias = Callable[[bytes, CallContext], Awaitable[bytes]]
Streaming: TypeAlias = Callable[[AsyncIterator[bytes], CallContext], AsyncGenerator[bytes, None]]


@dataclass(frozen=True, slots=True)
class Methods:
    """The calls that are answered, by path: "/package.Service/Call"."""

    unary: Mapping[str, Unary]
    streaming: Mapping[str, Streaming]

    def __or__(self, other: "Methods") -> "Methods":
        return Methods({**self.unary, **other.unary}, {**self.streaming, **other.streaming})


def read_head(headers: tuple[Header, ...]) -> Head:
    """Never raises: what is wrong is told as `fault`."""
    metadata = dict(headers)
    fault = ""
    http_status = "200"
    timeout_s: float | None = None
    timeout = metadata.get("grpc-timeout")
    if timeout is not None:
        match = _TIMEOUT.fullmatch(timeout)
        if match is None:
            fault = f"grpc-timeout is at most eight digits and a unit; {timeout!r:.40} came"
        else:
            timeout_s = int(match[1]) * _UNIT_S[match[2]]
    if _CONTENT_TYPE.fullmatch(metadata.get("content-type", "")) is None:
        fault, http_status = "gRPC calls have the content-type application/grpc", "415"
    if metadata.get(":method") != "POST":
        fault, http_status = "gRPC calls are POST requests", "405"
    encoding = metadata.get("grpc-encoding", "identity")
    return Head(metadata.get(":path", ""), timeout_s, encoding, metadata, fault, http_status)


def announced_bytes(prefix: bytes, max_bytes: int) -> int:
    """Length of the message that begins with `prefix`. Raises `TooLarge`, `InvalidRequest`."""
    if prefix[0] > 1:
        raise InvalidRequest("a message begins with neither 0 nor 1")
    length = int.from_bytes(prefix[1:PREFIX_BYTES], "big")
    if length > max_bytes:
        raise _too_large(length, max_bytes)
    return length


def unwrapped(wrapped: bytes, head: Head, max_bytes: int) -> bytes:
    """The one message that `wrapped` holds, unpacked. Raises `InvalidRequest`, `TooLarge`, `Unsupported`."""
    message = _one_message(wrapped, max_bytes)
    return unpacked(message, head.encoding, max_bytes) if wrapped[0] else message


def unwrapped_if_small(wrapped: bytes, head: Head, max_bytes: int, small_bytes: int) -> bytes | None:
    """As `unwrapped`; None for a message that unpacks to more than `small_bytes`: no more of it is unpacked."""
    most = min(small_bytes, max_bytes)
    message = _one_message(wrapped, max_bytes)
    plain = _unpacked_up_to(message, head.encoding, most) if wrapped[0] else message
    return None if len(plain) > most else plain


def unpacked(message: bytes, encoding: str, max_bytes: int) -> bytes:
    """A compressed message, unpacked, never to more than `max_bytes`. Raises as `unwrapped` does."""
    plain = _unpacked_up_to(message, encoding, max_bytes)
    if len(plain) > max_bytes:
        raise MessageTooLarge(f"the message unpacks to more than the {max_bytes} bytes that are accepted")
    return plain


def _one_message(wrapped: bytes, max_bytes: int) -> bytes:
    if len(wrapped) < PREFIX_BYTES:
        raise InvalidRequest("the call ended before its message began")
    length = announced_bytes(wrapped, max_bytes)
    if len(wrapped) - PREFIX_BYTES != length:
        raise InvalidRequest(
            f"the call holds {len(wrapped) - PREFIX_BYTES} bytes after its first prefix, which announces {length}: "
            "it takes one message"
        )
    return wrapped[PREFIX_BYTES:]


def _unpacked_up_to(message: bytes, encoding: str, max_bytes: int) -> bytes:
    """A message that unpacks to more than `max_bytes` is cut one byte after them."""
    if encoding not in ENCODINGS:
        raise Unsupported(f"grpc-encoding {encoding!r:.40} is not supported; {', '.join(ENCODINGS)} are")
    if encoding == "identity":
        raise InvalidRequest("a message is marked as compressed and the call names no grpc-encoding")
    unpacker = zlib.decompressobj(31 if encoding == "gzip" else 15)
    try:
        plain = unpacker.decompress(message, max_bytes + 1)
    except zlib.error as error:
        raise InvalidRequest(f"a message is not the {encoding} that it says it is: {error}") from error
    if len(plain) <= max_bytes and not unpacker.eof:
        raise InvalidRequest(f"a message's {encoding} ends too early")
    return plain


def _too_large(length: int, max_bytes: int) -> MessageTooLarge:
    return MessageTooLarge(f"the message of {length} bytes is larger than max: {max_bytes}; send fewer rows")


def wrap(message: bytes) -> bytes:
    """What stands before `message`."""
    return b"\0" + len(message).to_bytes(4, "big")


def only_status_block(status: grpc.StatusCode, message: str) -> bytes:
    """Headers and trailers in one, of a call that ends without a message."""
    accepted = encode(("grpc-accept-encoding", ",".join(ENCODINGS))) if status is grpc.StatusCode.UNIMPLEMENTED else b""
    return OK_HEADERS + accepted + status_block(status, message)


def refusal_block(head: Head, status: grpc.StatusCode) -> bytes:
    """Headers and trailers in one, of a request that is not a gRPC call: also a plain HTTP client sees that."""
    allowed = encode(("allow", "POST")) if head.http_status == "405" else b""
    return encode((":status", head.http_status)) + CONTENT + allowed + status_block(status, head.fault)
