"""The route table as a message: what gateways are told. The only place that turns our values into `control.proto`'s."""

from collections.abc import Mapping, Sequence

from cluster.state import ServedModel
from cluster.world import Route
from protos import control_pb2
from worker.model_yaml import ModelYaml
from worker.nouns import Axis, Signature, TensorSpec


def route_table(
    generation: int,
    routes: Sequence[Route],
    served: Mapping[tuple[str, int], ServedModel],
    epoch: int = 0,
    store: str = "",
    *,
    stopping: bool = False,
) -> control_pb2.RouteTable:
    """`served` holds at least the models and revisions of `routes`, with their signatures. `epoch`: in `store`."""
    return control_pb2.RouteTable(
        generation=generation,
        epoch=epoch,
        store=store,
        stopping=stopping,
        models=[_model(route, served[route.model, route.revision]) for route in routes],
    )


def _model(route: Route, served: ServedModel) -> control_pb2.ModelRoute:
    signature = served.signatures[route.version]
    return control_pb2.ModelRoute(
        model=route.model,
        version=str(route.version),
        ready=not route.reason,
        reason=route.reason,
        signature=signature_message(signature),
        replicas=[
            control_pb2.Replica(id=replica, address=address) for replica, address in sorted(route.replicas.items())
        ],
        limits=_limits(served.config, batched=signature.batched),
        revision=route.revision,
        weight=route.weight,
    )


def signature_message(signature: Signature) -> control_pb2.Signature:
    return control_pb2.Signature(
        inputs=[_tensor(spec) for spec in signature.inputs],
        outputs=[_tensor(spec) for spec in signature.outputs],
        axes=[_axis(axis) for axis in signature.axes],
    )


def _tensor(spec: TensorSpec) -> control_pb2.TensorSpec:
    return control_pb2.TensorSpec(
        name=spec.name,
        datatype=spec.datatype,
        shape=[
            control_pb2.Dimension(axis=size) if isinstance(size, str) else control_pb2.Dimension(size=size)
            for size in spec.shape
        ],
    )


def _axis(axis: Axis) -> control_pb2.Axis:
    return control_pb2.Axis(name=axis.name, minimum=axis.minimum, maximum=axis.maximum or 0)


def _limits(config: ModelYaml, *, batched: bool) -> control_pb2.Limits:
    return control_pb2.Limits(
        max_batch_rows=config.batching.max_rows,
        default_deadline_s=config.deadline_s,
        max_inflight_per_replica=config.limits.max_inflight_per_replica,
        max_inflight=config.limits.max_inflight,
        max_batch_wait_us=round(config.batching.max_wait_ms * 1000),
        batched=batched,
        start_wait_s=config.from_zero_wait_s,
        plain_queue=config.limits.admission == "queue",
        hedge_share=config.limits.hedge_share,
    )
