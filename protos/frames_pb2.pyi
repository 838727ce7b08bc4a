from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FrameBatch(_message.Message):
    __slots__ = ("frames", "load")
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    frames: _containers.RepeatedCompositeFieldContainer[Frame]
    load: Load
    def __init__(self, frames: _Optional[_Iterable[_Union[Frame, _Mapping]]] = ..., load: _Optional[_Union[Load, _Mapping]] = ...) -> None: ...

class Load(_message.Message):
    __slots__ = ("queued_rows", "seconds_per_row", "draining", "finish_s", "pace_s", "least_s")
    QUEUED_ROWS_FIELD_NUMBER: _ClassVar[int]
    SECONDS_PER_ROW_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    FINISH_S_FIELD_NUMBER: _ClassVar[int]
    PACE_S_FIELD_NUMBER: _ClassVar[int]
    LEAST_S_FIELD_NUMBER: _ClassVar[int]
    queued_rows: int
    seconds_per_row: float
    draining: bool
    finish_s: float
    pace_s: float
    least_s: float
    def __init__(self, queued_rows: _Optional[int] = ..., seconds_per_row: _Optional[float] = ..., draining: _Optional[bool] = ..., finish_s: _Optional[float] = ..., pace_s: _Optional[float] = ..., least_s: _Optional[float] = ...) -> None: ...

class Frame(_message.Message):
    __slots__ = ("id", "request", "reply", "cancel", "chunk", "payload_bytes")
    ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    REPLY_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_BYTES_FIELD_NUMBER: _ClassVar[int]
    id: int
    request: Request
    reply: Reply
    cancel: Cancel
    chunk: Chunk
    payload_bytes: int
    def __init__(self, id: _Optional[int] = ..., request: _Optional[_Union[Request, _Mapping]] = ..., reply: _Optional[_Union[Reply, _Mapping]] = ..., cancel: _Optional[_Union[Cancel, _Mapping]] = ..., chunk: _Optional[_Union[Chunk, _Mapping]] = ..., payload_bytes: _Optional[int] = ...) -> None: ...

class Request(_message.Message):
    __slots__ = ("remaining_us", "priority", "traceparent", "tensors")
    REMAINING_US_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    remaining_us: int
    priority: int
    traceparent: str
    tensors: _containers.RepeatedCompositeFieldContainer[TensorHeader]
    def __init__(self, remaining_us: _Optional[int] = ..., priority: _Optional[int] = ..., traceparent: _Optional[str] = ..., tensors: _Optional[_Iterable[_Union[TensorHeader, _Mapping]]] = ...) -> None: ...

class Reply(_message.Message):
    __slots__ = ("code", "message", "tensors", "timing", "retriable", "confirmed")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    TIMING_FIELD_NUMBER: _ClassVar[int]
    RETRIABLE_FIELD_NUMBER: _ClassVar[int]
    CONFIRMED_FIELD_NUMBER: _ClassVar[int]
    code: int
    message: str
    tensors: _containers.RepeatedCompositeFieldContainer[TensorHeader]
    timing: Timing
    retriable: bool
    confirmed: bool
    def __init__(self, code: _Optional[int] = ..., message: _Optional[str] = ..., tensors: _Optional[_Iterable[_Union[TensorHeader, _Mapping]]] = ..., timing: _Optional[_Union[Timing, _Mapping]] = ..., retriable: _Optional[bool] = ..., confirmed: _Optional[bool] = ...) -> None: ...

class Timing(_message.Message):
    __slots__ = ("queue_ns", "compute_ns", "batch_rows")
    QUEUE_NS_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_NS_FIELD_NUMBER: _ClassVar[int]
    BATCH_ROWS_FIELD_NUMBER: _ClassVar[int]
    queue_ns: int
    compute_ns: int
    batch_rows: int
    def __init__(self, queue_ns: _Optional[int] = ..., compute_ns: _Optional[int] = ..., batch_rows: _Optional[int] = ...) -> None: ...

class TensorHeader(_message.Message):
    __slots__ = ("name", "datatype", "shape", "bytes")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DATATYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    name: str
    datatype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    bytes: int
    def __init__(self, name: _Optional[str] = ..., datatype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., bytes: _Optional[int] = ...) -> None: ...

class Cancel(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Chunk(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
