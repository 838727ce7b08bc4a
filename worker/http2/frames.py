"""HTTP/2's numbers and frames (RFC 9113), as far as gRPC needs them."""

import struct
from collections.abc import Iterable
from enum import IntEnum
from typing import Final

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
FRAME_HEADER_BYTES: Final = 9
DEFAULT_WINDOW: Final = 65_535
DEFAULT_FRAME_BYTES: Final = 16_384
MAX_WINDOW: Final = (1 << 31) - 1
MAX_STREAM_ID: Final = (1 << 31) - 1


class Kind(IntEnum):
    DATA = 0
    HEADERS = 1
    PRIORITY = 2
    RST_STREAM = 3
    SETTINGS = 4
    PUSH_PROMISE = 5
    PING = 6
    GOAWAY = 7
    WINDOW_UPDATE = 8
    CONTINUATION = 9


class Flag:
    """Plain numbers: they are looked at several times for each call, and an IntFlag's arithmetic is slow."""

    END_STREAM: Final = 1
    ACK: Final = 1
    END_HEADERS: Final = 4
    PADDED: Final = 8
    PRIORITY: Final = 32


class Setting(IntEnum):
    HEADER_TABLE_SIZE = 1
    ENABLE_PUSH = 2
    MAX_CONCURRENT_STREAMS = 3
    INITIAL_WINDOW_SIZE = 4
    MAX_FRAME_SIZE = 5
    MAX_HEADER_LIST_SIZE = 6


class Code(IntEnum):
    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    ENHANCE_YOUR_CALM = 11


class ConnectionFault(Exception):
    """The other end broke the protocol; the connection ends."""

    def __init__(self, code: Code, why: str) -> None:
        super().__init__(why)
        self.code = code


_OF_A_CONNECTION: Final = frozenset(("connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade"))

_HEADER: Final = struct.Struct(">HBBBI")
_SETTING: Final = struct.Struct(">HI")
_NUMBER: Final = struct.Struct(">I")
_TWO_NUMBERS: Final = struct.Struct(">II")


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return frame_header(len(payload), kind, flags, stream) + payload


def frame_header(length: int, kind: int, flags: int, stream: int) -> bytes:
    return _HEADER.pack(length >> 8, length & 0xFF, kind, flags, stream)


def read_frame_header(data: bytes, offset: int) -> tuple[int, int, int, int]:
    """Length, kind, flags, stream."""
    high, low, kind, flags, stream = _HEADER.unpack_from(data, offset)
    return high << 8 | low, kind, flags, stream & MAX_STREAM_ID


def settings(**values: int) -> bytes:
    """A SETTINGS frame; names as in `Setting`."""
    payload = b"".join(_SETTING.pack(Setting[name], value) for name, value in values.items())
    return frame(Kind.SETTINGS, 0, 0, payload)


def read_settings(payload: bytes) -> list[tuple[int, int]]:
    """Each in its bounds; those that are unknown are for the reader to pass over."""
    if len(payload) % _SETTING.size:
        raise ConnectionFault(Code.FRAME_SIZE_ERROR, "a SETTINGS frame of a broken length")
    settings: list[tuple[int, int]] = list(_SETTING.iter_unpack(payload))
    for name, value in settings:
        if name == Setting.INITIAL_WINDOW_SIZE and value > MAX_WINDOW:
            raise ConnectionFault(Code.FLOW_CONTROL_ERROR, f"INITIAL_WINDOW_SIZE {value}")
        if name == Setting.MAX_FRAME_SIZE and not DEFAULT_FRAME_BYTES <= value < 1 << 24:
            raise ConnectionFault(Code.PROTOCOL_ERROR, f"MAX_FRAME_SIZE {value}")
        if name == Setting.ENABLE_PUSH and value > 1:
            raise ConnectionFault(Code.PROTOCOL_ERROR, f"ENABLE_PUSH {value}")
    return settings


def window_update(stream: int, size: int) -> bytes:
    return frame(Kind.WINDOW_UPDATE, 0, stream, _NUMBER.pack(size))


def reset(stream: int, code: Code) -> bytes:
    return frame(Kind.RST_STREAM, 0, stream, _NUMBER.pack(code))


def goaway(last_stream: int, code: Code, why: str = "") -> bytes:
    return frame(Kind.GOAWAY, 0, 0, _TWO_NUMBERS.pack(last_stream, code) + why.encode()[:200])


def number(payload: bytes, name: str) -> int:
    """The one number that a frame holds."""
    if len(payload) != _NUMBER.size:
        raise ConnectionFault(Code.FRAME_SIZE_ERROR, f"a {name} frame of {len(payload)} bytes")
    (value,) = _NUMBER.unpack(payload)
    return int(value)


def unpadded(payload: bytes, flags: int, *, priority: bool = False) -> bytes:
    """What a DATA or HEADERS frame holds, without padding and, where `priority`, without its five bytes."""
    if flags & Flag.PADDED:
        if not payload or payload[0] >= len(payload):
            raise ConnectionFault(Code.PROTOCOL_ERROR, "a frame with more padding than it holds")
        payload = payload[1 : len(payload) - payload[0]]
    if priority and flags & Flag.PRIORITY:
        if len(payload) < 5:
            raise ConnectionFault(Code.FRAME_SIZE_ERROR, "a HEADERS frame without its priority")
        payload = payload[5:]
    return payload


def well_formed(headers: Iterable[tuple[str, str]]) -> bool:
    """Whether a request's headers, or its trailers, are in the form that RFC 9113, 8.2 and 8.3, asks for."""
    pseudo: set[str] = set()
    regular = False
    for name, value in headers:
        if name[:1] == ":":
            if regular or name in pseudo:
                return False
            pseudo.add(name)
            continue
        regular = True
        if name != name.lower() or name in _OF_A_CONNECTION or (name == "te" and value != "trailers"):
            return False
    return True
