"""The route table as the controller sends it, read into nouns. Refuses what makes no sense."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from gateway.errors import quoted
from protos import control_pb2 as pb
from worker.errors import InvalidRequest
from worker.nouns import BYTES, ELEMENT_BYTES, Axis, Signature, TensorSpec


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one model version; as in control.proto."""

    max_batch_rows: int
    deadline_s: float
    max_inflight_per_replica: int
    max_inflight: int
    max_batch_wait_us: int
    batched: bool
    start_wait_s: float = 0.0
    plain_queue: bool = False
    hedge_share: float = 0.0


@dataclass(frozen=True, slots=True)
class Route:
    """One model version as the table describes it. `replicas`: stage 0's, id to host:port."""

    model: str
    version: str
    ready: bool
    reason: str
    signature: Signature
    replicas: dict[str, str]
    limits: Limits
    revision: int = 0
    weight: int = 0
    stopping: bool = False

    @property
    def accepts(self) -> bool:
        """Whether a request is taken: it is ready, or a request waits until it is, and wakes it."""
        return self.ready or self.wakes

    @property
    def wakes(self) -> bool:
        return bool(self.limits.start_wait_s) and not self.stopping

    @property
    def label(self) -> str:
        return f"model {quoted(self.model)} version {self.version}"


def read_route(route: pb.ModelRoute, *, stopping: bool = False) -> Route:
    """`stopping`: the whole cluster. Raises `InvalidRequest`, which names the model and the field."""
    label = f"route of model {quoted(route.model)} version {quoted(route.version)}"
    if not route.model:
        raise InvalidRequest("a route names no model")
    if not (route.version.isascii() and route.version.isdecimal() and int(route.version) > 0):
        raise InvalidRequest(f"{label}: the version is a positive whole number")
    if str(int(route.version)) != route.version:
        raise InvalidRequest(f"{label}: the version is written without leading zeros")
    return Route(
        model=route.model,
        version=route.version,
        ready=route.ready,
        reason=route.reason,
        signature=_signature(route.signature, label),
        replicas={replica.id: replica.address for replica in route.replicas},
        limits=_limits(route.limits, label),
        revision=route.revision,
        weight=route.weight,
        stopping=stopping,
    )


def _signature(signature: pb.Signature, label: str) -> Signature:
    return Signature(
        inputs=_specs(signature.inputs, f"{label}: input"),
        outputs=_specs(signature.outputs, f"{label}: output"),
        axes=tuple(Axis(axis.name, axis.minimum, axis.maximum or None) for axis in signature.axes),
    )


def _specs(specs: Iterable[pb.TensorSpec], label: str) -> tuple[TensorSpec, ...]:
    read = []
    for spec in specs:
        if spec.datatype != BYTES and spec.datatype not in ELEMENT_BYTES:
            raise InvalidRequest(f"{label} {quoted(spec.name)} has an unknown datatype: {quoted(spec.datatype)}")
        shape = tuple(dim.axis if dim.WhichOneof("kind") == "axis" else dim.size for dim in spec.shape)
        read.append(TensorSpec(spec.name, spec.datatype, shape))
    if len({spec.name for spec in read}) != len(read):
        raise InvalidRequest(f"{label}s do not all have names of their own")
    return tuple(read)


def _limits(limits: pb.Limits, label: str) -> Limits:
    if not (math.isfinite(limits.default_deadline_s) and limits.default_deadline_s > 0):
        raise InvalidRequest(f"{label}: default_deadline_s is above 0 and finite; {limits.default_deadline_s} came")
    if not (math.isfinite(limits.start_wait_s) and limits.start_wait_s >= 0):
        raise InvalidRequest(f"{label}: start_wait_s is 0 or more and finite; {limits.start_wait_s} came")
    if not 0 <= limits.hedge_share <= 1:
        raise InvalidRequest(f"{label}: hedge_share is a share from 0 to 1; {limits.hedge_share} came")
    if limits.max_inflight_per_replica < 1:
        raise InvalidRequest(f"{label}: max_inflight_per_replica is 1 or more")
    return Limits(
        max_batch_rows=limits.max_batch_rows,
        deadline_s=limits.default_deadline_s,
        max_inflight_per_replica=limits.max_inflight_per_replica,
        max_inflight=limits.max_inflight,
        max_batch_wait_us=limits.max_batch_wait_us,
        batched=limits.batched,
        start_wait_s=limits.start_wait_s,
        plain_queue=limits.plain_queue,
        hedge_share=limits.hedge_share,
    )
