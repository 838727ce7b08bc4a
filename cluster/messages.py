"""What the controller is told and asked for: `control.proto`'s messages to values and back, checked."""

from pydantic import ValidationError

from cluster.repository import MODEL_NAME
from cluster.state import Rollout, ServedModel, State
from cluster.traffic import Counts, Lane, Report
from cluster.world import Pipeline
from protos import control_pb2
from worker.errors import InvalidRequest
from worker.histogram import BUCKETS

MAX_LANES = 10_000


def read_report(message: control_pb2.GatewayReport) -> Report:
    """Raises InvalidRequest."""
    if not message.gateway or len(message.lanes) > MAX_LANES:
        raise InvalidRequest(f"a report names its gateway and has up to {MAX_LANES} lanes")
    return Report(message.gateway, message.generation, dict(map(_lane, message.lanes)))


def _lane(message: control_pb2.LaneReport) -> tuple[Pipeline, Lane]:
    if not (message.version.isascii() and message.version.isdecimal()):
        raise InvalidRequest(f"lanes.version: expected a whole number, got {message.version!r:.40}")
    counts = Counts(
        arrived_rows=message.arrived_rows,
        answered=message.answered,
        failed=message.failed,
        refused=message.refused,
        missed=message.missed_deadline,
        took={bucket: count for bucket, count in message.took.items() if bucket < BUCKETS},
        refusal_took={bucket: count for bucket, count in message.refusal_took.items() if bucket < BUCKETS},
    )
    pipeline = Pipeline(message.model, int(message.version), message.revision)
    return pipeline, Lane(message.inflight, message.unplaced_rows, counts)


def read_rollout(message: control_pb2.RolloutRequest) -> Rollout:
    """Raises InvalidRequest, which names the field."""
    if not MODEL_NAME.fullmatch(message.model):
        raise InvalidRequest(f"model: expected a name of letters, digits, '.', '_' and '-', got {message.model!r:.100}")
    try:
        return Rollout(
            target=ServedModel.model_validate_json(message.served),
            canary=message.canary_percent,
            watch_s=message.watch_s,
            within_s=message.within_s,
            why="asked to roll out",
        )
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "served"
        raise InvalidRequest(f"{field}: {first['msg']}") from error


def history_message(state: State, model: str) -> control_pb2.History:
    """`model` empty: of every model."""
    return control_pb2.History(
        entries=[
            control_pb2.HistoryEntry(
                unix_s=entry.unix_s,
                model=entry.model,
                revision=entry.served.revision,
                versions=sorted(entry.served.replicas),
                stages=entry.served.config.stages,
                what=entry.what,
                why=entry.why,
            )
            for entry in state.history
            if model in ("", entry.model)
        ]
    )
