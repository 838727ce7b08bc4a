"""Requests' bytes to one batch of torch tensors, and the batch's outputs back to each request, trimmed.

A *named axis* of a signature has one length per request. In a batch, it has the longest; the rest is the input's `pad`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Final

import numpy as np
import torch

from worker.errors import InvalidRequest
from worker.nouns import BATCH, ELEMENT_BYTES, Signature, Tensor, TensorSpec, Work

TORCH_TYPES: Final[Mapping[str, torch.dtype]] = {
    "BOOL": torch.bool,
    "UINT8": torch.uint8,
    "UINT16": torch.uint16,
    "UINT32": torch.uint32,
    "UINT64": torch.uint64,
    "INT8": torch.int8,
    "INT16": torch.int16,
    "INT32": torch.int32,
    "INT64": torch.int64,
    "FP16": torch.float16,
    "BF16": torch.bfloat16,
    "FP32": torch.float32,
    "FP64": torch.float64,
}
DATATYPES: Final[Mapping[torch.dtype, str]] = {dtype: name for name, dtype in TORCH_TYPES.items()}

_RAW: Final[Mapping[int, np.dtype[Any]]] = {size: np.dtype(f"<u{size}") for size in (1, 2, 4, 8)}


@dataclass(frozen=True, slots=True)
class Measured:
    """What the batcher must know of a request: see `worker.batcher.Item`."""

    rows: int
    nbytes: int
    shape_key: object
    sizes: tuple[int, ...]


class Collator:
    """Puts requests together and takes answers apart for one shard.

    `inputs` are the shard's; `outputs` are those of the whole pipeline from here on, which are what is taken apart.
    """

    def __init__(self, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
        self._inputs = tuple(inputs)
        self._outputs = {spec.name: spec for spec in outputs}
        names = [dim for spec in inputs for dim in spec.shape if isinstance(dim, str) and dim != BATCH]
        self._axes = tuple(dict.fromkeys(names))
        self._batched = Signature(tuple(inputs), tuple(outputs)).batched
        self._paddable = (
            self._batched
            and all(
                spec.pad is not None or all(dim == BATCH or isinstance(dim, int) for dim in spec.shape)
                for spec in inputs
            )
            and all(isinstance(dim, int) or dim in (*self._axes, BATCH) for spec in outputs for dim in spec.shape)
        )

    @property
    def pads(self) -> bool:
        """Whether requests of different lengths can share a batch."""
        return self._paddable

    def measure(self, work: Work) -> Measured:
        """Raises `InvalidRequest` where a tensor does not match its spec; the tensors' bytes are not looked at."""
        tensors = by_name(work.tensors)
        lengths: dict[str, int] = {}
        nbytes = 0
        for spec in self._inputs:
            tensor = tensors.get(spec.name)
            if tensor is None:
                raise InvalidRequest(f"input '{spec.name}' is missing")
            _check(tensor, spec)
            nbytes += len(tensor.data)
            for dim, size in zip(spec.shape, tensor.shape, strict=True):
                if isinstance(dim, str) and lengths.setdefault(dim, size) != size:
                    raise InvalidRequest(
                        f"input '{spec.name}': axis '{dim}' is {size} here and {lengths[dim]} in another input"
                    )
        sizes = tuple(lengths[name] for name in self._axes)
        rows = lengths.get(BATCH, 1)
        if not self._batched:
            return Measured(rows, nbytes, object(), ())
        return Measured(rows, nbytes, None, sizes) if self._paddable else Measured(rows, nbytes, sizes, ())

    def stack(self, works: Sequence[Work]) -> list[torch.Tensor]:
        """One tensor per input of the shard, in its order. Each has the rows of all `works`, padded to the longest."""
        named = [by_name(work.tensors) for work in works]
        return [_stack([tensors[spec.name] for tensors in named], spec) for spec in self._inputs]

    def split(self, outputs: Sequence[Tensor], works: Sequence[Work]) -> list[tuple[Tensor, ...]]:
        """Each work's own rows of `outputs`, its named axes cut back to the length that it came with."""
        if len(works) == 1:
            return [tuple(outputs)]
        answers: list[tuple[Tensor, ...]] = []
        first = 0
        for work in works:
            lengths = self._lengths(work)
            rows = lengths[BATCH]
            answers.append(
                tuple(_cut_out(tensor, self._outputs[tensor.name], first, rows, lengths) for tensor in outputs)
            )
            first += rows
        return answers

    def _lengths(self, work: Work) -> dict[str, int]:
        tensors = by_name(work.tensors)
        return {
            dim: size
            for spec in self._inputs
            for dim, size in zip(spec.shape, tensors[spec.name].shape, strict=True)
            if isinstance(dim, str)
        }


def by_name(tensors: Sequence[Tensor]) -> dict[str, Tensor]:
    return {tensor.name: tensor for tensor in tensors}


def to_tensors(values: Sequence[torch.Tensor], specs: Sequence[TensorSpec]) -> tuple[Tensor, ...]:
    """A shard's outputs as they travel; contiguous values are not copied."""
    return tuple(
        Tensor(spec.name, DATATYPES[value.dtype], tuple(value.shape), _bytes_of(value))
        for value, spec in zip(values, specs, strict=True)
    )


def _bytes_of(value: torch.Tensor) -> memoryview:
    if value.numel() == 0:
        return memoryview(b"")
    flat = value.detach().to("cpu").contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def _check(tensor: Tensor, spec: TensorSpec) -> None:
    if tensor.datatype != spec.datatype:
        raise InvalidRequest(f"input '{spec.name}': expected datatype {spec.datatype}, got {tensor.datatype}")
    if len(tensor.shape) != len(spec.shape) or any(
        isinstance(dim, int) and dim != size for dim, size in zip(spec.shape, tensor.shape, strict=True)
    ):
        raise InvalidRequest(f"input '{spec.name}': expected shape {list(spec.shape)}, got {list(tensor.shape)}")
    expected = prod(tensor.shape) * ELEMENT_BYTES[spec.datatype]
    if min(tensor.shape, default=1) < 0 or len(tensor.data) != expected:
        raise InvalidRequest(
            f"input '{spec.name}': shape {list(tensor.shape)} takes {expected} bytes, got {len(tensor.data)}"
        )


def _stack(tensors: Sequence[Tensor], spec: TensorSpec) -> torch.Tensor:
    raw = _RAW[ELEMENT_BYTES[spec.datatype]]
    arrays = [np.frombuffer(tensor.data, raw).reshape(tensor.shape) for tensor in tensors]
    rows = sum(array.shape[0] for array in arrays) if spec.shape[:1] == (BATCH,) else None
    if rows is None or len(arrays) == 1:
        return _typed(arrays[0].copy(), spec.datatype)
    inner = tuple(max(sizes) for sizes in zip(*(array.shape[1:] for array in arrays), strict=True))
    stacked = np.empty((rows, *inner), raw)
    if any(array.shape[1:] != inner for array in arrays):
        stacked[...] = _pad_pattern(spec)
    first = 0
    for array in arrays:
        stacked[(slice(first, first + array.shape[0]), *map(slice, array.shape[1:]))] = array
        first += array.shape[0]
    return _typed(stacked, spec.datatype)


def _typed(array: np.ndarray[Any, np.dtype[Any]], datatype: str) -> torch.Tensor:
    if datatype == "BOOL":
        return torch.from_numpy(array).ne(0)
    return torch.from_numpy(array).view(TORCH_TYPES[datatype])


def _pad_pattern(spec: TensorSpec) -> int:
    """The bits of the pad value, as an unsigned number of the element's width."""
    value = torch.tensor([spec.pad], dtype=TORCH_TYPES[spec.datatype])
    return int.from_bytes(bytes(value.view(torch.uint8).tolist()), "little")


def _cut_out(tensor: Tensor, spec: TensorSpec, first: int, rows: int, lengths: Mapping[str, int]) -> Tensor:
    """Rows `first` to `first + rows` of a batch's output; named axes cut to `lengths`."""
    wanted = (
        rows,
        *(
            lengths.get(dim, size) if isinstance(dim, str) else size
            for dim, size in zip(spec.shape[1:], tensor.shape[1:], strict=True)
        ),
    )
    row_bytes = len(tensor.data) // tensor.shape[0]
    data = memoryview(tensor.data)[first * row_bytes : (first + rows) * row_bytes]
    if wanted[1:] != tensor.shape[1:]:
        raw = _RAW[ELEMENT_BYTES[tensor.datatype]]
        array = np.frombuffer(data, raw).reshape(rows, *tensor.shape[1:])
        data = memoryview(array[tuple(map(slice, wanted))].tobytes())
    return Tensor(tensor.name, tensor.datatype, wanted, data)
