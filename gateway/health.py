"""`grpc.health.v1`: the whole server under "" and under the service's name, each model under its own name."""

import asyncio
from collections.abc import Callable
from typing import Final, TypeAlias

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2 as pb

from gateway.errors import quoted

SERVICE: Final = "grpc.health.v1.Health"
WHOLE_SERVER: Final = ("", "inference.GRPCInferenceService")

SERVING: Final[int] = pb.HealthCheckResponse.SERVING
NOT_SERVING: Final[int] = pb.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN: Final[int] = pb.HealthCheckResponse.SERVICE_UNKNOWN

_Request: TypeAlias = pb.HealthCheckRequest
_Response: TypeAlias = pb.HealthCheckResponse
_Context: TypeAlias = "grpc.aio.ServicerContext[_Request, _Response]"


class Health:
    """`ready`: whether a model ("": any model) can be served, None where there is none of the name.

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

    async def check(self, request: _Request, context: _Context) -> _Response:
        status = self.status(request.service)
        if status == SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no model or service {quoted(request.service)}")
        return _Response(status=status)

    async def watch(self, request: _Request, context: _Context) -> None:
        """Writes the status now and whenever it is another, until the client leaves or the server stops."""
        told: int | None = None
        while not self._closed:
            change = self._change
            status = self.status(request.service)
            if status != told:
                await context.write(_Response(status=status))
                told = status
            await change.wait()

    def handlers(self) -> grpc.GenericRpcHandler:
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "Check": grpc.unary_unary_rpc_method_handler(
                    self.check, _Request.FromString, _Response.SerializeToString
                ),
                "Watch": grpc.unary_stream_rpc_method_handler(
                    self.watch, _Request.FromString, _Response.SerializeToString
                ),
            },
        )
