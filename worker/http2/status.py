"""How gRPC says over HTTP/2 that a call is answered, and how it ended."""

from typing import Final

import grpc

from worker.http2.hpack import encode

CONTENT: Final = encode(("content-type", "application/grpc"))
OK_HEADERS: Final = encode((":status", "200")) + CONTENT
OK_TRAILERS: Final = encode(("grpc-status", "0"))

_PLAIN: Final = frozenset(range(0x20, 0x7F)) - {ord("%")}


def status_block(status: grpc.StatusCode, message: str) -> bytes:
    """Trailers that end a call."""
    if not message:
        return encode(("grpc-status", str(status.value[0])))
    return encode(("grpc-status", str(status.value[0])), ("grpc-message", _percent_encoded(message)))


def _percent_encoded(message: str) -> str:
    return "".join(chr(byte) if byte in _PLAIN else f"%{byte:02X}" for byte in message.encode(errors="replace"))
