"""What the controller sees, as the message that `shardline status` shows."""

from cluster.controller import Controller
from cluster.world import Phase, Replica, Stage
from protos import control_pb2
from worker.nouns import WorkerStats

SHOWN_STATE = {Phase.UNKNOWN: "starting", Phase.PENDING: "starting", Phase.DRAINED: "draining"}
"""The protocol has four states; these are the phases whose name is not one of them."""


def cluster_status(controller: Controller) -> control_pb2.ClusterStatus:
    sighting = controller.sighting
    return control_pb2.ClusterStatus(
        generation=controller.state.generation,
        models=[_model(controller, name, version) for name, version in _versions(controller)],
        decisions=[
            control_pb2.Decision(unix_s=decision.unix_s, what=decision.what, why=decision.why)
            for decision in controller.decisions
        ],
        nodes=[
            control_pb2.NodeStatus(id=node.id, address=node.address, resources=node.resources)
            for node in sighting.nodes
        ],
    )


def _versions(controller: Controller) -> list[tuple[str, int]]:
    return sorted({(stage.model, stage.version) for stage in controller.state.desired})


def _model(controller: Controller, name: str, version: int) -> control_pb2.ModelStatus:
    reasons = {(route.model, route.version): route.reason for route in controller.routes()}
    reason = reasons.get((name, version), "it is not served")
    waiting = "; ".join(
        f"stage {stage.index} waits: {why}"
        for stage, why in sorted(controller.waiting().items())
        if (stage.model, stage.version) == (name, version)
    )
    return control_pb2.ModelStatus(
        model=name,
        version=str(version),
        ready=not reason,
        reason=reason or waiting,
        stages=[
            _stage(controller, stage, desired)
            for stage, desired in sorted(controller.state.desired.items())
            if (stage.model, stage.version) == (name, version)
        ],
    )


def _stage(controller: Controller, stage: Stage, desired: int) -> control_pb2.StageStatus:
    replicas = sorted(
        (replica for replica in controller.sighting.replicas if replica.stage == stage), key=lambda replica: replica.id
    )
    figures = controller.sighting.figures
    return control_pb2.StageStatus(
        stage=stage.index,
        desired=desired,
        replicas=[_replica(replica, figures.get(replica.id, WorkerStats())) for replica in replicas],
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
