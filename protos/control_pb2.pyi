from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class WatchRoutesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RouteTable(_message.Message):
    __slots__ = ("generation", "models", "epoch", "store", "stopping")
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    STORE_FIELD_NUMBER: _ClassVar[int]
    STOPPING_FIELD_NUMBER: _ClassVar[int]
    generation: int
    models: _containers.RepeatedCompositeFieldContainer[ModelRoute]
    epoch: int
    store: str
    stopping: bool
    def __init__(self, generation: _Optional[int] = ..., models: _Optional[_Iterable[_Union[ModelRoute, _Mapping]]] = ..., epoch: _Optional[int] = ..., store: _Optional[str] = ..., stopping: _Optional[bool] = ...) -> None: ...

class ModelRoute(_message.Message):
    __slots__ = ("model", "version", "ready", "reason", "signature", "replicas", "limits", "revision", "weight")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: str
    ready: bool
    reason: str
    signature: Signature
    replicas: _containers.RepeatedCompositeFieldContainer[Replica]
    limits: Limits
    revision: int
    weight: int
    def __init__(self, model: _Optional[str] = ..., version: _Optional[str] = ..., ready: _Optional[bool] = ..., reason: _Optional[str] = ..., signature: _Optional[_Union[Signature, _Mapping]] = ..., replicas: _Optional[_Iterable[_Union[Replica, _Mapping]]] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., revision: _Optional[int] = ..., weight: _Optional[int] = ...) -> None: ...

class Replica(_message.Message):
    __slots__ = ("id", "address")
    ID_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    id: str
    address: str
    def __init__(self, id: _Optional[str] = ..., address: _Optional[str] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("max_batch_rows", "default_deadline_s", "max_inflight_per_replica", "max_inflight", "max_batch_wait_us", "batched", "start_wait_s", "plain_queue", "hedge_share")
    MAX_BATCH_ROWS_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_DEADLINE_S_FIELD_NUMBER: _ClassVar[int]
    MAX_INFLIGHT_PER_REPLICA_FIELD_NUMBER: _ClassVar[int]
    MAX_INFLIGHT_FIELD_NUMBER: _ClassVar[int]
    MAX_BATCH_WAIT_US_FIELD_NUMBER: _ClassVar[int]
    BATCHED_FIELD_NUMBER: _ClassVar[int]
    START_WAIT_S_FIELD_NUMBER: _ClassVar[int]
    PLAIN_QUEUE_FIELD_NUMBER: _ClassVar[int]
    HEDGE_SHARE_FIELD_NUMBER: _ClassVar[int]
    max_batch_rows: int
    default_deadline_s: float
    max_inflight_per_replica: int
    max_inflight: int
    max_batch_wait_us: int
    batched: bool
    start_wait_s: float
    plain_queue: bool
    hedge_share: float
    def __init__(self, max_batch_rows: _Optional[int] = ..., default_deadline_s: _Optional[float] = ..., max_inflight_per_replica: _Optional[int] = ..., max_inflight: _Optional[int] = ..., max_batch_wait_us: _Optional[int] = ..., batched: _Optional[bool] = ..., start_wait_s: _Optional[float] = ..., plain_queue: _Optional[bool] = ..., hedge_share: _Optional[float] = ...) -> None: ...

class Signature(_message.Message):
    __slots__ = ("inputs", "outputs", "axes")
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    AXES_FIELD_NUMBER: _ClassVar[int]
    inputs: _containers.RepeatedCompositeFieldContainer[TensorSpec]
    outputs: _containers.RepeatedCompositeFieldContainer[TensorSpec]
    axes: _containers.RepeatedCompositeFieldContainer[Axis]
    def __init__(self, inputs: _Optional[_Iterable[_Union[TensorSpec, _Mapping]]] = ..., outputs: _Optional[_Iterable[_Union[TensorSpec, _Mapping]]] = ..., axes: _Optional[_Iterable[_Union[Axis, _Mapping]]] = ...) -> None: ...

class TensorSpec(_message.Message):
    __slots__ = ("name", "datatype", "shape")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DATATYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    name: str
    datatype: str
    shape: _containers.RepeatedCompositeFieldContainer[Dimension]
    def __init__(self, name: _Optional[str] = ..., datatype: _Optional[str] = ..., shape: _Optional[_Iterable[_Union[Dimension, _Mapping]]] = ...) -> None: ...

class Dimension(_message.Message):
    __slots__ = ("size", "axis")
    SIZE_FIELD_NUMBER: _ClassVar[int]
    AXIS_FIELD_NUMBER: _ClassVar[int]
    size: int
    axis: str
    def __init__(self, size: _Optional[int] = ..., axis: _Optional[str] = ...) -> None: ...

class Axis(_message.Message):
    __slots__ = ("name", "minimum", "maximum")
    NAME_FIELD_NUMBER: _ClassVar[int]
    MINIMUM_FIELD_NUMBER: _ClassVar[int]
    MAXIMUM_FIELD_NUMBER: _ClassVar[int]
    name: str
    minimum: int
    maximum: int
    def __init__(self, name: _Optional[str] = ..., minimum: _Optional[int] = ..., maximum: _Optional[int] = ...) -> None: ...

class GatewayReport(_message.Message):
    __slots__ = ("gateway", "generation", "lanes")
    GATEWAY_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    LANES_FIELD_NUMBER: _ClassVar[int]
    gateway: str
    generation: int
    lanes: _containers.RepeatedCompositeFieldContainer[LaneReport]
    def __init__(self, gateway: _Optional[str] = ..., generation: _Optional[int] = ..., lanes: _Optional[_Iterable[_Union[LaneReport, _Mapping]]] = ...) -> None: ...

class LaneReport(_message.Message):
    __slots__ = ("model", "version", "revision", "inflight", "unplaced_rows", "arrived_rows", "answered", "failed", "refused", "missed_deadline", "took", "refusal_took")
    class TookEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: int
        def __init__(self, key: _Optional[int] = ..., value: _Optional[int] = ...) -> None: ...
    class RefusalTookEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: int
        def __init__(self, key: _Optional[int] = ..., value: _Optional[int] = ...) -> None: ...
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    INFLIGHT_FIELD_NUMBER: _ClassVar[int]
    UNPLACED_ROWS_FIELD_NUMBER: _ClassVar[int]
    ARRIVED_ROWS_FIELD_NUMBER: _ClassVar[int]
    ANSWERED_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    MISSED_DEADLINE_FIELD_NUMBER: _ClassVar[int]
    TOOK_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_TOOK_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: str
    revision: int
    inflight: int
    unplaced_rows: int
    arrived_rows: int
    answered: int
    failed: int
    refused: int
    missed_deadline: int
    took: _containers.ScalarMap[int, int]
    refusal_took: _containers.ScalarMap[int, int]
    def __init__(self, model: _Optional[str] = ..., version: _Optional[str] = ..., revision: _Optional[int] = ..., inflight: _Optional[int] = ..., unplaced_rows: _Optional[int] = ..., arrived_rows: _Optional[int] = ..., answered: _Optional[int] = ..., failed: _Optional[int] = ..., refused: _Optional[int] = ..., missed_deadline: _Optional[int] = ..., took: _Optional[_Mapping[int, int]] = ..., refusal_took: _Optional[_Mapping[int, int]] = ...) -> None: ...

class ReportResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ClusterStatus(_message.Message):
    __slots__ = ("generation", "models", "decisions", "nodes", "epoch")
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    DECISIONS_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    generation: int
    models: _containers.RepeatedCompositeFieldContainer[ModelStatus]
    decisions: _containers.RepeatedCompositeFieldContainer[Decision]
    nodes: _containers.RepeatedCompositeFieldContainer[NodeStatus]
    epoch: int
    def __init__(self, generation: _Optional[int] = ..., models: _Optional[_Iterable[_Union[ModelStatus, _Mapping]]] = ..., decisions: _Optional[_Iterable[_Union[Decision, _Mapping]]] = ..., nodes: _Optional[_Iterable[_Union[NodeStatus, _Mapping]]] = ..., epoch: _Optional[int] = ...) -> None: ...

class NodeStatus(_message.Message):
    __slots__ = ("id", "address", "resources", "taken", "replicas", "labels", "drained")
    class ResourcesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    class TakenEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    ID_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    RESOURCES_FIELD_NUMBER: _ClassVar[int]
    TAKEN_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    DRAINED_FIELD_NUMBER: _ClassVar[int]
    id: str
    address: str
    resources: _containers.ScalarMap[str, float]
    taken: _containers.ScalarMap[str, float]
    replicas: int
    labels: _containers.ScalarMap[str, str]
    drained: bool
    def __init__(self, id: _Optional[str] = ..., address: _Optional[str] = ..., resources: _Optional[_Mapping[str, float]] = ..., taken: _Optional[_Mapping[str, float]] = ..., replicas: _Optional[int] = ..., labels: _Optional[_Mapping[str, str]] = ..., drained: _Optional[bool] = ...) -> None: ...

class ModelStatus(_message.Message):
    __slots__ = ("model", "version", "ready", "reason", "stages", "revision", "weight", "requests_per_s", "p50_ms", "p99_ms", "failed_per_s", "refused_per_s", "inflight", "rollout", "refusal_p50_ms", "refusal_p99_ms")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    STAGES_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_PER_S_FIELD_NUMBER: _ClassVar[int]
    P50_MS_FIELD_NUMBER: _ClassVar[int]
    P99_MS_FIELD_NUMBER: _ClassVar[int]
    FAILED_PER_S_FIELD_NUMBER: _ClassVar[int]
    REFUSED_PER_S_FIELD_NUMBER: _ClassVar[int]
    INFLIGHT_FIELD_NUMBER: _ClassVar[int]
    ROLLOUT_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_P50_MS_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_P99_MS_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: str
    ready: bool
    reason: str
    stages: _containers.RepeatedCompositeFieldContainer[StageStatus]
    revision: int
    weight: int
    requests_per_s: float
    p50_ms: float
    p99_ms: float
    failed_per_s: float
    refused_per_s: float
    inflight: int
    rollout: str
    refusal_p50_ms: float
    refusal_p99_ms: float
    def __init__(self, model: _Optional[str] = ..., version: _Optional[str] = ..., ready: _Optional[bool] = ..., reason: _Optional[str] = ..., stages: _Optional[_Iterable[_Union[StageStatus, _Mapping]]] = ..., revision: _Optional[int] = ..., weight: _Optional[int] = ..., requests_per_s: _Optional[float] = ..., p50_ms: _Optional[float] = ..., p99_ms: _Optional[float] = ..., failed_per_s: _Optional[float] = ..., refused_per_s: _Optional[float] = ..., inflight: _Optional[int] = ..., rollout: _Optional[str] = ..., refusal_p50_ms: _Optional[float] = ..., refusal_p99_ms: _Optional[float] = ...) -> None: ...

class StageStatus(_message.Message):
    __slots__ = ("stage", "desired", "replicas", "queued_rows", "rows_per_s", "busy", "min", "max", "wanted")
    STAGE_FIELD_NUMBER: _ClassVar[int]
    DESIRED_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    QUEUED_ROWS_FIELD_NUMBER: _ClassVar[int]
    ROWS_PER_S_FIELD_NUMBER: _ClassVar[int]
    BUSY_FIELD_NUMBER: _ClassVar[int]
    MIN_FIELD_NUMBER: _ClassVar[int]
    MAX_FIELD_NUMBER: _ClassVar[int]
    WANTED_FIELD_NUMBER: _ClassVar[int]
    stage: int
    desired: int
    replicas: _containers.RepeatedCompositeFieldContainer[ReplicaStatus]
    queued_rows: int
    rows_per_s: float
    busy: float
    min: int
    max: int
    wanted: int
    def __init__(self, stage: _Optional[int] = ..., desired: _Optional[int] = ..., replicas: _Optional[_Iterable[_Union[ReplicaStatus, _Mapping]]] = ..., queued_rows: _Optional[int] = ..., rows_per_s: _Optional[float] = ..., busy: _Optional[float] = ..., min: _Optional[int] = ..., max: _Optional[int] = ..., wanted: _Optional[int] = ...) -> None: ...

class ReplicaStatus(_message.Message):
    __slots__ = ("id", "state", "address", "node", "pid", "queued_rows", "seconds_per_row", "computed_rows", "computed_batches", "dropped_expired", "dropped_cancelled", "refused", "failed", "resident_bytes", "runtime", "note")
    ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    QUEUED_ROWS_FIELD_NUMBER: _ClassVar[int]
    SECONDS_PER_ROW_FIELD_NUMBER: _ClassVar[int]
    COMPUTED_ROWS_FIELD_NUMBER: _ClassVar[int]
    COMPUTED_BATCHES_FIELD_NUMBER: _ClassVar[int]
    DROPPED_EXPIRED_FIELD_NUMBER: _ClassVar[int]
    DROPPED_CANCELLED_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    RESIDENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    RUNTIME_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    id: str
    state: str
    address: str
    node: str
    pid: int
    queued_rows: int
    seconds_per_row: float
    computed_rows: int
    computed_batches: int
    dropped_expired: int
    dropped_cancelled: int
    refused: int
    failed: int
    resident_bytes: int
    runtime: str
    note: str
    def __init__(self, id: _Optional[str] = ..., state: _Optional[str] = ..., address: _Optional[str] = ..., node: _Optional[str] = ..., pid: _Optional[int] = ..., queued_rows: _Optional[int] = ..., seconds_per_row: _Optional[float] = ..., computed_rows: _Optional[int] = ..., computed_batches: _Optional[int] = ..., dropped_expired: _Optional[int] = ..., dropped_cancelled: _Optional[int] = ..., refused: _Optional[int] = ..., failed: _Optional[int] = ..., resident_bytes: _Optional[int] = ..., runtime: _Optional[str] = ..., note: _Optional[str] = ...) -> None: ...

class Decision(_message.Message):
    __slots__ = ("unix_s", "what", "why")
    UNIX_S_FIELD_NUMBER: _ClassVar[int]
    WHAT_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    unix_s: float
    what: str
    why: str
    def __init__(self, unix_s: _Optional[float] = ..., what: _Optional[str] = ..., why: _Optional[str] = ...) -> None: ...

class ScaleRequest(_message.Message):
    __slots__ = ("model", "stage", "replicas")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    model: str
    stage: int
    replicas: int
    def __init__(self, model: _Optional[str] = ..., stage: _Optional[int] = ..., replicas: _Optional[int] = ...) -> None: ...

class ScaleResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StopRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StopResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RolloutRequest(_message.Message):
    __slots__ = ("model", "served", "canary_percent", "watch_s", "within_s", "even_without_room")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    SERVED_FIELD_NUMBER: _ClassVar[int]
    CANARY_PERCENT_FIELD_NUMBER: _ClassVar[int]
    WATCH_S_FIELD_NUMBER: _ClassVar[int]
    WITHIN_S_FIELD_NUMBER: _ClassVar[int]
    EVEN_WITHOUT_ROOM_FIELD_NUMBER: _ClassVar[int]
    model: str
    served: str
    canary_percent: int
    watch_s: float
    within_s: float
    even_without_room: bool
    def __init__(self, model: _Optional[str] = ..., served: _Optional[str] = ..., canary_percent: _Optional[int] = ..., watch_s: _Optional[float] = ..., within_s: _Optional[float] = ..., even_without_room: _Optional[bool] = ...) -> None: ...

class RolloutResponse(_message.Message):
    __slots__ = ("revision",)
    REVISION_FIELD_NUMBER: _ClassVar[int]
    revision: int
    def __init__(self, revision: _Optional[int] = ...) -> None: ...

class RollbackRequest(_message.Message):
    __slots__ = ("model", "revision")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    model: str
    revision: int
    def __init__(self, model: _Optional[str] = ..., revision: _Optional[int] = ...) -> None: ...

class RollbackResponse(_message.Message):
    __slots__ = ("revision",)
    REVISION_FIELD_NUMBER: _ClassVar[int]
    revision: int
    def __init__(self, revision: _Optional[int] = ...) -> None: ...

class GetHistoryRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    def __init__(self, model: _Optional[str] = ...) -> None: ...

class History(_message.Message):
    __slots__ = ("entries",)
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    entries: _containers.RepeatedCompositeFieldContainer[HistoryEntry]
    def __init__(self, entries: _Optional[_Iterable[_Union[HistoryEntry, _Mapping]]] = ...) -> None: ...

class HistoryEntry(_message.Message):
    __slots__ = ("unix_s", "model", "revision", "versions", "stages", "what", "why")
    UNIX_S_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    STAGES_FIELD_NUMBER: _ClassVar[int]
    WHAT_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    unix_s: float
    model: str
    revision: int
    versions: _containers.RepeatedScalarFieldContainer[int]
    stages: int
    what: str
    why: str
    def __init__(self, unix_s: _Optional[float] = ..., model: _Optional[str] = ..., revision: _Optional[int] = ..., versions: _Optional[_Iterable[int]] = ..., stages: _Optional[int] = ..., what: _Optional[str] = ..., why: _Optional[str] = ...) -> None: ...

class FetchFileRequest(_message.Message):
    __slots__ = ("model", "version", "path", "offset", "code")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: int
    path: str
    offset: int
    code: str
    def __init__(self, model: _Optional[str] = ..., version: _Optional[int] = ..., path: _Optional[str] = ..., offset: _Optional[int] = ..., code: _Optional[str] = ...) -> None: ...

class FileChunk(_message.Message):
    __slots__ = ("data",)
    DATA_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    def __init__(self, data: _Optional[bytes] = ...) -> None: ...
