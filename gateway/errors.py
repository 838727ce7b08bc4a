"""Where exceptions become gRPC statuses: a `ShardlineError` keeps its code and message, anything else is `INTERNAL`."""

import logging
from typing import Final

import grpc

from worker.errors import ShardlineError

STATUS_BY_CODE: Final[dict[int, grpc.StatusCode]] = {status.value[0]: status for status in grpc.StatusCode}

MAX_MESSAGE_BYTES: Final = 2000
"""A status travels in HTTP/2 trailers, percent-encoded; peers drop trailers over 8 KiB."""

logger = logging.getLogger(__name__)


def status_of(error: Exception) -> tuple[grpc.StatusCode, str]:
    """What the client is told of `error`. One that nobody foresaw is logged, and told without its details."""
    if isinstance(error, ShardlineError):
        return STATUS_BY_CODE.get(error.code, grpc.StatusCode.INTERNAL), shortened(str(error))
    logger.error("a request failed in the gateway", exc_info=error)
    return grpc.StatusCode.INTERNAL, "the gateway failed on this request; its log says why"


def quoted(name: str) -> str:
    """A name that came from outside, for a message: in quotes, on one line, not longer than a line."""
    return repr(name if len(name) <= 80 else f"{name[:77]}...")


def shortened(message: str) -> str:
    """`message` as it fits into a status."""
    encoded = message.encode(errors="replace")
    if len(encoded) <= MAX_MESSAGE_BYTES:
        return encoded.decode()
    return encoded[: MAX_MESSAGE_BYTES - 3].decode(errors="ignore") + "..."
