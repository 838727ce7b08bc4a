"""`grpc.health.v1`: the whole server under "" and under the service's name, each model under its own name."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Final

from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2 as pb

from gateway.errors import quoted
from gateway.http2.call import CallContext, Methods
from worker.errors import InvalidRequest, NotFound

SERVICE: Final = "grpc.health.v1.Health"
WHOLE_SERVER: Final = ("", "inference.GRPCInferenceService")

SERVING: Final[int] = pb.HealthCheckResponse.SERVING
NOT_SERVING: Final[int] = pb.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN: Final[int] = pb.HealthCheckResponse.SERVICE_UNKNOWN


class Health:
    """`ready`: whether a model ("": any model) takes requests, None where there is none of the name.

    Whoever changes what `ready` says calls `changed`.
    """

    def __init__(self, ready: Callable[[str], bool | None]) -> None:
        self._ready = ready
        self.draining = False
        self._closed = False
        self._change = asyncio.Event()

    @property
    def serving(self) -> bool:
        return not self.draining and bool(self._ready(""))

    def changed(self) -> None:
        """Every watcher looks again."""
        self._change.set()
        self._change = asyncio.Event()

    def drain(self) -> None:
        """Everything is NOT_SERVING from now on."""
        self.draining = True
        self.changed()

    def close(self) -> None:
        """Ends every Watch, so that the server can stop."""
        self._closed = True
        self.changed()

    def status(self, service: str) -> int:
        ready = self._ready("" if service in WHOLE_SERVER else service)
        if ready is None:
            return SERVICE_UNKNOWN
        return SERVING if ready and not self.draining else NOT_SERVING

    async def check(self, message: bytes, _: CallContext) -> bytes:
        service = _service(message)
        status = self.status(service)
        if status == SERVICE_UNKNOWN:
            raise NotFound(f"no model or service {quoted(service)}")
        return _response(status)

    async def watch(self, messages: AsyncIterator[bytes], _: CallContext) -> AsyncGenerator[bytes, None]:
        """The status now and whenever it is another, until the client leaves or the server stops."""
        service = _service(await anext(messages, b""))
        told: int | None = None
        while not self._closed:
            change = self._change
            status = self.status(service)
            if status != told:
                yield _response(status)
                told = status
            else:
                await change.wait()

    def methods(self) -> Methods:
        return Methods(unary={f"/{SERVICE}/Check": self.check}, streaming={f"/{SERVICE}/Watch": self.watch})


def _service(message: bytes) -> str:
    try:
        return str(pb.HealthCheckRequest.FromString(message).service)
    except DecodeError as error:
        raise InvalidRequest(f"not a HealthCheckRequest, or a name in it is not UTF-8: {error}") from error


def _response(status: int) -> bytes:
    return bytes(pb.HealthCheckResponse(status=status).SerializeToString())
