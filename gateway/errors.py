"""Where exceptions become gRPC statuses: a `ShardlineError` keeps its code and message, anything else is `INTERNAL`.

Every call of the gateway is wrapped once, when the server is put together; there is no interceptor on the way of a
request.
"""

import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final, NoReturn, TypeAlias

import grpc
import grpc.aio

from worker.errors import Internal, ShardlineError

Context: TypeAlias = "grpc.aio.ServicerContext[bytes, bytes]"
Call: TypeAlias = Callable[[bytes, Context], Awaitable[bytes]]

STATUS_BY_CODE: Final[dict[int, grpc.StatusCode]] = {status.value[0]: status for status in grpc.StatusCode}

MAX_MESSAGE_BYTES: Final = 2000
"""A status travels in HTTP/2 trailers, percent-encoded; peers drop trailers over 8 KiB."""

logger = logging.getLogger(__name__)


def quoted(name: str) -> str:
    """A name that came from outside, for a message: in quotes, on one line, not longer than a line."""
    return repr(name if len(name) <= 80 else f"{name[:77]}...")


def shortened(message: str) -> str:
    """`message` as it fits into a status."""
    encoded = message.encode(errors="replace")
    if len(encoded) <= MAX_MESSAGE_BYTES:
        return encoded.decode()
    return encoded[: MAX_MESSAGE_BYTES - 3].decode(errors="ignore") + "..."


def guarded(call: Call) -> Call:
    """`call`, whose exceptions reach the client as statuses."""

    async def answer(message: bytes, context: Context) -> bytes:
        try:
            return await call(message, context)
        except ShardlineError as error:
            await abort(context, error)
        except grpc.aio.AbortError:
            raise
        except Exception:
            logger.exception("a request failed in the gateway")
            await abort(context, Internal("the gateway failed on this request; its log says why"))

    return answer


async def abort(context: "grpc.aio.ServicerContext[Any, Any]", error: ShardlineError) -> NoReturn:
    """Ends the call with the error's status."""
    await context.abort(STATUS_BY_CODE.get(error.code, grpc.StatusCode.INTERNAL), shortened(str(error)))
