"""What the controller sees, as the message that `shardline status` shows."""

import time

from cluster.controller import Controller
from cluster.world import Phase, Pipeline, Replica, Stage
from protos import control_pb2
from worker.nouns import WorkerStats

SHOWN_STATE = {Phase.UNKNOWN: "starting", Phase.PENDING: "starting", Phase.DRAINED: "draining"}
"""The protocol has four states; these are the phases whose name is not one of them."""


def cluster_status(controller: Controller, now: float | None = None) -> control_pb2.ClusterStatus:
    """`now`: on the controller's monotonic clock; None: now."""
    now = time.monotonic() if now is None else now
    reasons = {route.pipeline: route.reason for route in controller.routes()}
    return control_pb2.ClusterStatus(
        generation=controller.state.generation,
        epoch=controller.epoch,
        models=[_model(controller, pipeline, reasons[pipeline], now) for pipeline in sorted(reasons)],
        decisions=[
            control_pb2.Decision(unix_s=decision.unix_s, what=decision.what, why=decision.why)
            for decision in controller.decisions
        ],
        nodes=[
            control_pb2.NodeStatus(
                id=node.id,
                address=node.address,
                resources=node.resources,
                taken=node.taken,
                replicas=node.replicas,
                labels=node.labels,
                drained=node.drained,
            )
            for node in controller.sighting.nodes
        ],
    )


def _model(controller: Controller, pipeline: Pipeline, reason: str, now: float) -> control_pb2.ModelStatus:
    waiting = "; ".join(
        f"stage {stage.index} waits: {why}"
        for stage, why in sorted(controller.waiting().items())
        if stage.pipeline == pipeline
    )
    rates = controller.traffic.rates(pipeline, now)
    desired = controller.state.desired
    return control_pb2.ModelStatus(
        model=pipeline.model,
        version=str(pipeline.version),
        revision=pipeline.revision,
        weight=controller.state.weights.get((pipeline.model, pipeline.revision), 100),
        rollout=controller.rolling.shown.get(pipeline.model, ""),
        ready=not reason,
        reason=reason or waiting,
        requests_per_s=rates.requests_per_s,
        p50_ms=rates.p50_s * 1e3,
        p99_ms=rates.p99_s * 1e3,
        failed_per_s=rates.failed_per_s,
        refused_per_s=rates.refused_per_s,
        refusal_p50_ms=rates.refusal_p50_s * 1e3,
        refusal_p99_ms=rates.refusal_p99_s * 1e3,
        inflight=controller.traffic.inflight(pipeline, now),
        stages=[_stage(controller, stage, desired[stage]) for stage in sorted(desired) if stage.pipeline == pipeline],
    )


def _stage(controller: Controller, stage: Stage, desired: int) -> control_pb2.StageStatus:
    replicas = sorted(
        (replica for replica in controller.sighting.replicas if replica.stage == stage), key=lambda replica: replica.id
    )
    figures = controller.sighting.figures
    bounds = controller.state.served[stage.model, stage.revision].bounds
    wanted = controller.scaler.wanted.get(stage.pipeline)
    return control_pb2.StageStatus(
        stage=stage.index,
        desired=desired,
        replicas=[_replica(replica, figures.get(replica.id, WorkerStats())) for replica in replicas],
        queued_rows=sum(figures.get(replica.id, WorkerStats()).queued_rows for replica in replicas),
        rows_per_s=controller.scaler.meters.rows_per_s(stage),
        busy=controller.scaler.meters.busy(stage),
        min=bounds[0][stage.index] if bounds else 0,
        max=bounds[1][stage.index] if bounds else 0,
        wanted=max(0, wanted[stage.index] - desired) if wanted else 0,
    )


def _replica(replica: Replica, figures: WorkerStats) -> control_pb2.ReplicaStatus:
    return control_pb2.ReplicaStatus(
        id=replica.id,
        state="draining" if replica.leaving and replica.living else SHOWN_STATE.get(replica.phase, replica.phase.value),
        address=replica.address,
        node=figures.node,
        pid=figures.pid,
        queued_rows=figures.queued_rows,
        seconds_per_row=figures.seconds_per_row,
        computed_rows=figures.computed_rows,
        computed_batches=figures.computed_batches,
        dropped_expired=figures.dropped_expired,
        dropped_cancelled=figures.dropped_cancelled,
        refused=figures.refused,
        failed=figures.failed,
        resident_bytes=figures.resident_bytes,
        runtime=figures.runtime,
        note=figures.note,
    )
