"""Descriptions of the server and its models, for clients that ask before they send. Pure: nouns in, messages out."""

from collections.abc import Iterable
from typing import Final

from gateway.parameters import DEFAULT_LEVEL, PRIORITY_LEVELS
from gateway.route_table import Route
from gateway.statistics import Totals
from protos import inference_pb2 as pb
from worker.nouns import BATCH, TensorSpec

SERVER_NAME: Final = "shardline"
PLATFORM: Final = "pytorch_exported_program"
REPOSITORY: Final = "models"
EXTENSIONS: Final = ("statistics", "model_configuration", "schedule_policy")

_ANY_SIZE: Final = -1


def server_metadata(version: str) -> pb.ServerMetadataResponse:
    return pb.ServerMetadataResponse(name=SERVER_NAME, version=version, extensions=EXTENSIONS)


def model_metadata(route: Route, versions: Iterable[str]) -> pb.ModelMetadataResponse:
    """Shapes with the batch axis, dynamic dimensions as -1."""
    metadata = pb.ModelMetadataResponse.TensorMetadata
    return pb.ModelMetadataResponse(
        name=route.model,
        versions=versions,
        platform=PLATFORM,
        inputs=[metadata(name=spec.name, datatype=spec.datatype, shape=_dims(spec)) for spec in route.signature.inputs],
        outputs=[
            metadata(name=spec.name, datatype=spec.datatype, shape=_dims(spec)) for spec in route.signature.outputs
        ],
    )


def model_config(route: Route) -> pb.ModelConfigResponse:
    """As Triton writes it: where the model has a batch axis, `max_batch_size` tells it and dims leave it out."""
    limits = route.limits
    batched = route.signature.batched
    first = 1 if batched else 0
    queue = pb.ModelQueuePolicy(
        timeout_action=pb.ModelQueuePolicy.REJECT,
        default_timeout_microseconds=int(limits.deadline_s * 1e6),
        allow_timeout_override=True,
        max_queue_size=limits.max_inflight,
    )
    batching = pb.ModelDynamicBatching(
        max_queue_delay_microseconds=limits.max_batch_wait_us,
        priority_levels=PRIORITY_LEVELS,
        default_priority_level=DEFAULT_LEVEL,
        default_queue_policy=queue,
    )
    config = pb.ModelConfig(
        name=route.model,
        platform=PLATFORM,
        backend=SERVER_NAME,
        version_policy=pb.ModelVersionPolicy(
            specific=pb.ModelVersionPolicy.Specific(versions=[int(route.version)]),
        ),
        max_batch_size=_max_batch_size(route) if batched else 0,
        input=[
            pb.ModelInput(name=spec.name, data_type=_data_type(spec), dims=_dims(spec)[first:])
            for spec in route.signature.inputs
        ],
        output=[
            pb.ModelOutput(name=spec.name, data_type=_data_type(spec), dims=_dims(spec)[first:])
            for spec in route.signature.outputs
        ],
        model_transaction_policy=pb.ModelTransactionPolicy(decoupled=False),
        dynamic_batching=batching if limits.batched else None,
    )
    return pb.ModelConfigResponse(config=config)


def model_statistics(route: Route, totals: Totals) -> pb.ModelStatistics:
    duration = pb.StatisticDuration
    done = totals.success
    return pb.ModelStatistics(
        name=route.model,
        version=route.version,
        last_inference=totals.last_ms,
        inference_count=totals.rows,
        execution_count=-(-totals.microbatches // 1_000_000),
        inference_stats=pb.InferStatistics(
            success=duration(count=done, ns=totals.success_ns),
            fail=duration(count=totals.fail, ns=totals.fail_ns),
            queue=duration(count=done, ns=totals.queue_ns),
            compute_input=duration(count=done, ns=totals.input_ns),
            compute_infer=duration(count=done, ns=totals.compute_ns),
            compute_output=duration(count=done, ns=totals.output_ns),
        ),
    )


def repository_index(routes: Iterable[Route], *, only_ready: bool) -> pb.RepositoryIndexResponse:
    index = pb.RepositoryIndexResponse.ModelIndex
    return pb.RepositoryIndexResponse(
        models=[
            index(
                name=route.model,
                version=route.version,
                state="READY" if route.accepts else "UNAVAILABLE",
                reason=route.reason,
            )
            for route in routes
            if route.accepts or not only_ready
        ]
    )


def _max_batch_size(route: Route) -> int:
    """0 would say "not batched" to a client: a model without a bound of its own shows the largest that there is."""
    bounds = [axis.maximum for axis in route.signature.axes if axis.name == BATCH and axis.maximum]
    return min([*bounds, route.limits.max_batch_rows or (1 << 31) - 1])


def _dims(spec: TensorSpec) -> list[int]:
    return [size if isinstance(size, int) else _ANY_SIZE for size in spec.shape]


def _data_type(spec: TensorSpec) -> str:
    name = "STRING" if spec.datatype == "BYTES" else spec.datatype
    return f"TYPE_{name}"
