"""Typed tensor contents, turned into the bytes that travel. FP16 and BF16 have no typed form."""

import struct
from array import array
from collections.abc import Mapping
from math import prod
from types import MappingProxyType
from typing import Final

from gateway.contract import InputRule, Shape, shape_text
from protos import inference_pb2 as pb
from worker.errors import InvalidRequest

_FIELDS: Final[Mapping[str, tuple[str, str]]] = MappingProxyType(
    {
        "BOOL": ("bool_contents", "B"),
        "INT8": ("int_contents", "b"),
        "INT16": ("int_contents", "h"),
        "INT32": ("int_contents", "i"),
        "INT64": ("int64_contents", "q"),
        "UINT8": ("uint_contents", "B"),
        "UINT16": ("uint_contents", "H"),
        "UINT32": ("uint_contents", "I"),
        "UINT64": ("uint64_contents", "Q"),
        "FP32": ("fp32_contents", "f"),
        "FP64": ("fp64_contents", "d"),
        "BYTES": ("bytes_contents", ""),
    }
)
"""By datatype: the field that its elements come in, and the array type that holds them."""

_LENGTH: Final = struct.Struct("<I")


def typed_bytes(contents: pb.InferTensorContents, rule: InputRule, shape: Shape) -> bytes:
    """Raises `InvalidRequest` where there is no data, it is in another datatype's field, it is more or less than what
    `shape` holds, or an element does not fit.
    """
    fields = contents.ListFields()
    if not fields:
        if 0 in shape:
            return b""
        raise InvalidRequest(f"{rule.label} has no data: neither raw_input_contents nor contents are set")
    if rule.datatype not in _FIELDS:
        raise InvalidRequest(f"{rule.label}: {rule.datatype} has no typed contents; send it in raw_input_contents")
    expected, code = _FIELDS[rule.datatype]
    for descriptor, _ in fields:
        if descriptor.name != expected:
            raise InvalidRequest(f"{rule.label}: {rule.datatype} elements belong in {expected}; {descriptor.name} came")
    values = fields[0][1]
    if len(values) != prod(shape):
        raise InvalidRequest(
            f"{rule.label}: {len(values)} elements came in {expected}, expected {prod(shape)}: "
            f"shape {shape_text(shape)} of {rule.datatype}"
        )
    if not code:
        return b"".join(part for value in values for part in (_LENGTH.pack(len(value)), value))
    try:
        return array(code, values).tobytes()
    except OverflowError as error:
        raise InvalidRequest(f"{rule.label}: an element in {expected} does not fit {rule.datatype}: {error}") from error
