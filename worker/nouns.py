"""The things that the other modules talk about. Start here.

A *model version* is an artifact: a captured program with a `Signature`. A request is `Work`: tensors and a deadline.
It is answered by an `Answer`. A replica says how busy it is with a `Load`.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from types import MappingProxyType
from typing import Final

BATCH: Final = "batch"
"""The name of the axis along which requests are put together; always axis 0."""

ELEMENT_BYTES: Final[Mapping[str, int]] = MappingProxyType(
    {
        "BOOL": 1,
        "UINT8": 1,
        "UINT16": 2,
        "UINT32": 4,
        "UINT64": 8,
        "INT8": 1,
        "INT16": 2,
        "INT32": 4,
        "INT64": 8,
        "FP16": 2,
        "BF16": 2,
        "FP32": 4,
        "FP64": 8,
    }
)
"""Bytes of one element, by the datatype's name in the Open Inference Protocol. BYTES elements vary and are not here."""

BYTES: Final = "BYTES"
"""Elements are each a 4-byte little-endian length and that many bytes."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What a tensor of a model looks like.

    A dimension is a size, or the name of a dynamic axis (which may be an expression such as "4*sequence" for a tensor
    inside the model). `pad` is the value that fills a shorter request up to the longest of its batch; None: requests
    that differ in anything but rows are not put into one batch.
    """

    name: str
    datatype: str
    shape: tuple[int | str, ...]
    pad: float | int | bool | None = None


@dataclass(frozen=True, slots=True)
class Axis:
    """Bounds of a named dynamic axis. `maximum` None: as large as the size limits allow."""

    name: str
    minimum: int = 1
    maximum: int | None = None

    def nearest(self, size: int) -> int:
        """The size within the bounds that is nearest to `size`."""
        return max(self.minimum, size if self.maximum is None else min(size, self.maximum))


@dataclass(frozen=True, slots=True)
class Signature:
    """What a program, a stage or a handler takes and gives."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    axes: tuple[Axis, ...] = ()

    @property
    def batched(self) -> bool:
        """Whether several requests can be computed as one: all tensors have the batch as their first axis."""
        return all(spec.shape[:1] == (BATCH,) for spec in (*self.inputs, *self.outputs))


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor as it travels: row-major little-endian bytes, of which nobody needs to know the meaning on the way."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: bytes | memoryview

    @property
    def elements(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True, slots=True)
class Timing:
    """Where an answer's time went, nanoseconds, and the rows of the batch it was computed in."""

    queue_ns: int = 0
    compute_ns: int = 0
    batch_rows: int = 0


@dataclass(frozen=True, slots=True)
class Work:
    """One request, or one stage's batch on its way to the next stage.

    `deadline` is on this process's `time.monotonic()`. `priority` 0 is served first.
    """

    tensors: tuple[Tensor, ...]
    deadline: float
    priority: int = 0
    traceparent: str = ""

    @property
    def rows(self) -> int:
        """Length of the first axis of the first tensor; 1 where there is none."""
        return self.tensors[0].shape[0] if self.tensors and self.tensors[0].shape else 1

    @property
    def remaining(self) -> float:
        """Seconds until the deadline; negative when it has passed."""
        return self.deadline - time.monotonic()


@dataclass(frozen=True, slots=True)
class Answer:
    tensors: tuple[Tensor, ...]
    timing: Timing = Timing()


@dataclass(frozen=True, slots=True)
class Forecast:
    """Seconds until a row that comes now would be answered, the later stages' part included, and what each row before
    it adds. 0: not known.

    least_s: of `finish_s`, what it takes where nothing is before it.
    """

    finish_s: float = 0.0
    pace_s: float = 0.0
    least_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Load:
    """What a replica says of itself with every reply: rows waiting or in work, and the recent time of one row.

    forecast: of a row that came now.
    """

    queued_rows: int = 0
    seconds_per_row: float = 0.0
    draining: bool = False
    forecast: Forecast = Forecast()


@dataclass(frozen=True, slots=True)
class WorkerStats:
    """A worker's own figures as it last told them; counts are since its start. Empty before it told any.

    computing_s: seconds that its shard computed. node: Ray's id of its node. draining: it takes nothing new.
    note: why it runs uncompiled, where it does.
    """

    replica: str = ""
    address: str = ""
    pid: int = 0
    node: str = ""
    runtime: str = ""
    note: str = ""
    queued_rows: int = 0
    seconds_per_row: float = 0.0
    computed_rows: int = 0
    computed_batches: int = 0
    computing_s: float = 0.0
    dropped_expired: int = 0
    dropped_cancelled: int = 0
    refused: int = 0
    failed: int = 0
    resident_bytes: int = 0
    draining: bool = False
