"""`inference.GRPCInferenceService`. Only translates: decode, admit, dispatch, encode."""

import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from time import monotonic, perf_counter_ns
from typing import Final, TypeVar

from google.protobuf.message import DecodeError, Message

from gateway.admission import Refused, seconds_allowed
from gateway.codec import decode, encode, parse_infer, wanted_outputs
from gateway.health import Health
from gateway.http2.call import CallContext, Methods, Streaming, Unary
from gateway.metadata import (
    REPOSITORY,
    model_config,
    model_metadata,
    model_statistics,
    repository_index,
    server_metadata,
)
from gateway.parameters import options
from gateway.routes import Routes
from gateway.statistics import Statistics
from protos import inference_pb2 as pb
from worker.errors import InvalidRequest, NotFound, Unsupported
from worker.nouns import Work

SERVICE: Final = "inference.GRPCInferenceService"
NOT_SUPPORTED: Final = (
    "ModelStreamInfer",
    "RepositoryModelLoad",
    "RepositoryModelUnload",
    "SystemSharedMemoryStatus",
    "SystemSharedMemoryRegister",
    "SystemSharedMemoryUnregister",
    "CudaSharedMemoryStatus",
    "CudaSharedMemoryRegister",
    "CudaSharedMemoryUnregister",
    "TraceSetting",
    "LogSettings",
)
"""Calls of Triton's that are answered UNIMPLEMENTED, by name."""

STREAMING: Final = ("ModelStreamInfer",)

_TRACEPARENT: Final = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


class Servicer:
    def __init__(self, routes: Routes, statistics: Statistics, health: Health, version: str) -> None:
        self._routes = routes
        self._statistics = statistics
        self._health = health
        self._version = version

    async def model_infer(self, message: bytes, context: CallContext) -> bytes:
        began = perf_counter_ns()
        request = parse_infer(message)
        served = self._routes.find(request.model_name, request.model_version)
        counters = served.counters
        try:
            tensors = decode(request, served.contract)
            wanted = wanted_outputs(request, served.contract)
            asked = options(request.parameters)
            allowed = seconds_allowed(context.time_remaining(), asked.timeout_s, served.route.limits.deadline_s)
            work = Work(tensors, monotonic() + allowed, asked.priority, traceparent(context.metadata))
            decoded = perf_counter_ns()
            expected = served.link.forecast(work.rows).finish_s
            with served.tally.request(work.rows), served.admission.request(expected, allowed):
                answer = await served.link.call(work, wait=True)
            answered = perf_counter_ns()
            response = encode(served.route.model, served.route.version, request.id, answer.tensors, wanted)
        except BaseException as error:
            counters.failed(perf_counter_ns() - began)
            if isinstance(error, Refused):
                context.tell_when_written(served.tally.refusal_written)
            raise
        now = perf_counter_ns()
        counters.succeeded(
            total_ns=now - began,
            queue_ns=answer.timing.queue_ns,
            compute_ns=answer.timing.compute_ns,
            input_ns=decoded - began,
            output_ns=now - answered,
            rows=work.rows,
            batch_rows=answer.timing.batch_rows,
        )
        return response

    async def server_live(self, _: pb.ServerLiveRequest) -> pb.ServerLiveResponse:
        return pb.ServerLiveResponse(live=True)

    async def server_ready(self, _: pb.ServerReadyRequest) -> pb.ServerReadyResponse:
        return pb.ServerReadyResponse(ready=self._health.serving)

    async def model_ready(self, request: pb.ModelReadyRequest) -> pb.ModelReadyResponse:
        """Not ready, rather than an error, where there is no such model or version: that is what clients poll for.

        A model that sleeps is ready: clients that poll before they send would wait for ever.
        """
        try:
            ready = self._routes.describe(request.name, request.version).route.accepts
        except NotFound:
            ready = False
        return pb.ModelReadyResponse(ready=ready and not self._health.draining)

    async def server_metadata(self, _: pb.ServerMetadataRequest) -> pb.ServerMetadataResponse:
        return server_metadata(self._version)

    async def model_metadata(self, request: pb.ModelMetadataRequest) -> pb.ModelMetadataResponse:
        route = self._routes.describe(request.name, request.version).route
        return model_metadata(route, [served.route.version for served in self._routes.versions(request.name)])

    async def model_config(self, request: pb.ModelConfigRequest) -> pb.ModelConfigResponse:
        return model_config(self._routes.describe(request.name, request.version).route)

    async def model_statistics(self, request: pb.ModelStatisticsRequest) -> pb.ModelStatisticsResponse:
        if request.version:
            asked = [self._routes.describe(request.name, request.version)]
        else:
            asked = self._routes.versions(request.name) if request.name else self._routes.all()
        routes = [served.route for served in asked]
        return pb.ModelStatisticsResponse(
            model_stats=[
                model_statistics(route, self._statistics.totals(route.model, route.version)) for route in routes
            ]
        )

    async def repository_index(self, request: pb.RepositoryIndexRequest) -> pb.RepositoryIndexResponse:
        if request.repository_name not in {"", REPOSITORY}:
            raise NotFound(f"there is one repository, {REPOSITORY!r}; {request.repository_name!r:.80} was asked for")
        return repository_index((served.route for served in self._routes.all()), only_ready=request.ready)

    def methods(self) -> Methods:
        calls: dict[str, Unary] = {
            "ModelInfer": self.model_infer,
            "ServerLive": _unary(pb.ServerLiveRequest, self.server_live),
            "ServerReady": _unary(pb.ServerReadyRequest, self.server_ready),
            "ModelReady": _unary(pb.ModelReadyRequest, self.model_ready),
            "ServerMetadata": _unary(pb.ServerMetadataRequest, self.server_metadata),
            "ModelMetadata": _unary(pb.ModelMetadataRequest, self.model_metadata),
            "ModelConfig": _unary(pb.ModelConfigRequest, self.model_config),
            "ModelStatistics": _unary(pb.ModelStatisticsRequest, self.model_statistics),
            "RepositoryIndex": _unary(pb.RepositoryIndexRequest, self.repository_index),
            **{name: _unsupported(name) for name in NOT_SUPPORTED if name not in STREAMING},
        }
        return Methods(
            unary={f"/{SERVICE}/{name}": call for name, call in calls.items()},
            streaming={f"/{SERVICE}/{name}": _unsupported_stream(name) for name in STREAMING},
        )


def traceparent(metadata: Mapping[str, str]) -> str:
    """The request's W3C trace context; empty where it has none, or one that cannot be read (as W3C asks)."""
    given = metadata.get("traceparent", "")
    return given if _TRACEPARENT.fullmatch(given) else ""


_Request = TypeVar("_Request", bound=Message)


def _unary(kind: type[_Request], call: Callable[[_Request], Awaitable[Message]]) -> Unary:
    async def answer(message: bytes, _: CallContext) -> bytes:
        try:
            request = kind.FromString(message)
        except DecodeError as error:
            raise InvalidRequest(f"not a {kind.DESCRIPTOR.name}, or a name in it is not UTF-8: {error}") from error
        return (await call(request)).SerializeToString()

    return answer


def _unsupported(name: str) -> Unary:
    async def answer(_: bytes, __: CallContext) -> bytes:
        raise _not_supported(name)

    return answer


def _unsupported_stream(name: str) -> Streaming:
    async def answer(messages: AsyncIterator[bytes], _: CallContext) -> AsyncGenerator[bytes, None]:
        await anext(messages, b"")  # a client that is still writing its first message may miss the status
        raise _not_supported(name)
        yield b""

    return answer


def _not_supported(name: str) -> Unsupported:
    return Unsupported(f"this server does not support {name}; it answers ModelInfer and the calls about models")
