"""A real worker's door with a plain coroutine behind it, route tables that lead to it, and a gateway in front."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from gateway.routes import Routes
from gateway.server import Gateway
from gateway.settings import ServerLimits
from gateway.statistics import Statistics
from protos import control_pb2 as pb
from worker.nouns import Answer, Load, Tensor, Timing, Work
from worker.stream_server import StreamServer

TOKEN = "a token for tests"

Serve = Callable[[Work], Awaitable[Answer]]
Shape = Sequence[int | str]


def spec(name: str, datatype: str, shape: Shape) -> pb.TensorSpec:
    dims = [pb.Dimension(size=size) if isinstance(size, int) else pb.Dimension(axis=size) for size in shape]
    return pb.TensorSpec(name=name, datatype=datatype, shape=dims)


def model(
    name: str = "echo",
    *,
    version: str = "1",
    replicas: Iterable[str] = (),
    inputs: Sequence[pb.TensorSpec] = (spec("x", "FP32", ("batch", 4)),),
    outputs: Sequence[pb.TensorSpec] = (spec("x", "FP32", ("batch", 4)),),
    axes: Sequence[pb.Axis] = (),
    ready: bool = True,
    reason: str = "",
    max_batch_rows: int = 16,
    deadline_s: float = 10.0,
    max_inflight: int = 64,
    max_inflight_per_replica: int = 64,
    batched: bool = True,
    start_wait_s: float = 0.0,
) -> pb.ModelRoute:
    return pb.ModelRoute(
        model=name,
        version=version,
        ready=ready,
        reason=reason,
        signature=pb.Signature(inputs=inputs, outputs=outputs, axes=axes),
        replicas=[pb.Replica(id=address, address=address) for address in replicas],
        limits=pb.Limits(
            max_batch_rows=max_batch_rows,
            default_deadline_s=deadline_s,
            max_inflight=max_inflight,
            max_inflight_per_replica=max_inflight_per_replica,
            max_batch_wait_us=500,
            batched=batched,
            start_wait_s=start_wait_s,
        ),
    )


def table(*models: pb.ModelRoute, generation: int = 1, stopping: bool = False) -> pb.RouteTable:
    return pb.RouteTable(generation=generation, models=models, stopping=stopping)


async def echo(work: Work) -> Answer:
    """Gives every tensor back."""
    return Answer(
        tuple(Tensor(tensor.name, tensor.datatype, tensor.shape, tensor.data) for tensor in work.tensors),
        Timing(queue_ns=1000, compute_ns=2000, batch_rows=work.rows),
    )


@asynccontextmanager
async def worker(serve: Serve = echo, token: str = TOKEN, load: Load | None = None) -> AsyncIterator[str]:
    """Yields its host:port."""
    server = StreamServer(token, serve, lambda: load or Load())
    address = await server.start()
    try:
        yield address
    finally:
        await server.stop()


@asynccontextmanager
async def routes() -> AsyncIterator[Routes]:
    """Routes alone, without a gateway around them."""
    one = Routes(Statistics.alone())
    try:
        yield one
    finally:
        await one.close()


def served(name: str = "echo", **fields: Any) -> Callable[[str], pb.ModelRoute]:
    """For `running`: a `model` whose replica is the worker."""
    return lambda address: model(name, replicas=[address], **fields)


@dataclass(frozen=True)
class Running:
    gateway: Gateway
    address: str
    worker: str

    def apply(self, *models: pb.ModelRoute, generation: int = 1, stopping: bool = False) -> None:
        self.gateway.apply(table(*models, generation=generation, stopping=stopping), TOKEN)

    @property
    def inflight(self) -> int:
        return self.gateway.routes.inflight


@asynccontextmanager
async def running(
    *models: Callable[[str], pb.ModelRoute],
    serve: Serve = echo,
    limits: ServerLimits | None = None,
    load: Load | None = None,
) -> AsyncIterator[Running]:
    """A gateway that serves `models`, each made from the worker's address; without any, the model `echo`."""
    async with worker(serve, load=load) as address, Gateway("127.0.0.1:0", limits=limits) as gateway:
        one = Running(gateway, f"127.0.0.1:{gateway.port}", address)
        one.apply(*(make(address) for make in models or (served(),)))
        yield one
