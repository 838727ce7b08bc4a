"""What one model version takes and gives: the checks that a request must pass, prepared once per route.

Knows shapes, datatypes and axes; knows nothing of protobuf. Every refusal names the tensor.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Final

from gateway.errors import quoted
from worker.errors import InvalidRequest
from worker.nouns import BATCH, ELEMENT_BYTES, Axis, Signature, TensorSpec

MAX_TENSOR_BYTES: Final = (1 << 63) - 1
"""Sizes and strides of a tensor are signed 64-bit numbers in every runtime."""

_LENGTH: Final = struct.Struct("<I")

Shape = tuple[int, ...]


class InputRule:
    """What one input must look like. `place` is its position in the model's signature."""

    def __init__(self, spec: TensorSpec, place: int, model: str) -> None:
        self.name = spec.name
        self.datatype = spec.datatype
        self.place = place
        self.element_bytes = ELEMENT_BYTES.get(spec.datatype, 0)
        self.label = f"input {quoted(spec.name)} for model {quoted(model)}"
        self._rank = len(spec.shape)
        self._fixed = tuple((index, size) for index, size in enumerate(spec.shape) if isinstance(size, int))
        self._expected = shape_text(spec.shape)

    def check(self, datatype: str, shape: Shape) -> None:
        """Raises `InvalidRequest` where datatype, rank, a fixed dimension or the size is wrong."""
        if datatype != self.datatype:
            raise InvalidRequest(f"{self.label}: datatype {quoted(datatype)}, expected {self.datatype}")
        if len(shape) != self._rank:
            raise InvalidRequest(
                f"{self.label}: {len(shape)} dimensions, expected {self._rank}: {self._expected} "
                f"(came {shape_text(shape)})"
            )
        if shape and min(shape) < 0:
            raise InvalidRequest(f"{self.label}: shape {shape_text(shape)} has a negative dimension")
        for index, size in self._fixed:
            if shape[index] != size:
                raise InvalidRequest(
                    f"{self.label}: shape {shape_text(shape)}, expected {self._expected}: "
                    f"dimension {index} is {shape[index]}, must be {size}"
                )

    def check_data(self, shape: Shape, data: bytes) -> None:
        """Raises `InvalidRequest` where `data` does not hold exactly the elements of `shape`."""
        elements = prod(shape)
        if self.element_bytes:
            expected = elements * self.element_bytes
            if len(data) != expected:
                self._refuse_overflow(shape)
                raise InvalidRequest(
                    f"{self.label}: {len(data)} bytes came, expected {expected}: "
                    f"shape {shape_text(shape)} of {self.datatype}"
                )
            if not expected:
                self._refuse_overflow(shape)
            elif self.datatype == "BOOL" and data.translate(None, b"\0\1"):
                raise InvalidRequest(f"{self.label}: a BOOL element is one byte, 0 or 1; another value came")
            return
        self._refuse_overflow(shape)
        self._check_bytes_elements(elements, data)

    def _refuse_overflow(self, shape: Shape) -> None:
        if prod(max(size, 1) for size in shape) * max(self.element_bytes, 1) > MAX_TENSOR_BYTES:
            raise InvalidRequest(f"{self.label}: shape {shape_text(shape)} overflows a 64-bit size")

    def _check_bytes_elements(self, elements: int, data: bytes) -> None:
        size = len(data)
        if elements * 4 > size:
            raise InvalidRequest(
                f"{self.label}: {size} bytes came, too few for {elements} elements: "
                "each is a 4-byte little-endian length and that many bytes"
            )
        offset = 0
        unpack = _LENGTH.unpack_from
        for element in range(elements):
            if offset + 4 > size:
                raise InvalidRequest(f"{self.label}: the data ends after {element} of {elements} elements")
            (length,) = unpack(data, offset)
            offset += 4 + length
            if offset > size:
                raise InvalidRequest(
                    f"{self.label}: element {element} says that it is {length} bytes long; "
                    f"{size - offset + length} bytes are left"
                )
        if offset != size:
            raise InvalidRequest(f"{self.label}: {size - offset} bytes are left over after {elements} elements")


@dataclass(frozen=True, slots=True)
class _AxisRule:
    """One named axis of the inputs. `uses`: where it stands, as (input's place, dimension)."""

    axis: Axis
    uses: tuple[tuple[int, int], ...]


class Contract:
    """The checks of one model version. `max_batch_rows` 0: as many rows as the size limits allow."""

    def __init__(self, model: str, signature: Signature, max_batch_rows: int) -> None:
        self.model = model
        self.signature = signature
        self.max_batch_rows = max_batch_rows
        self.rules = tuple(InputRule(spec, place, model) for place, spec in enumerate(signature.inputs))
        self.outputs = tuple(spec.name for spec in signature.outputs)
        self._by_name = {rule.name: rule for rule in self.rules}
        self._axes = _axis_rules(signature, max_batch_rows)

    def rule(self, name: str) -> InputRule:
        """Raises `InvalidRequest` where the model has no such input."""
        rule = self._by_name.get(name)
        if rule is None:
            what = f"unknown input {quoted(name)}" if name else "an input without a name"
            raise InvalidRequest(f"{what} for model {quoted(self.model)}; {self._takes()}")
        return rule

    def complete(self, shapes: Sequence[Shape | None]) -> list[Shape]:
        """`shapes` by place; None: not given. Raises `InvalidRequest` for the first that is missing."""
        known = [shape for shape in shapes if shape is not None]
        if len(known) < len(self.rules):
            missing = self.rules[list(shapes).index(None)]
            raise InvalidRequest(f"{missing.label} is missing; {self._takes()}")
        return known

    def check_axes(self, shapes: Sequence[Shape]) -> None:
        """Raises `InvalidRequest` where a named axis is outside its bounds or differs between two inputs."""
        for one in self._axes:
            place, dimension = one.uses[0]
            size = shapes[place][dimension]
            axis = one.axis
            if size < axis.minimum or (axis.maximum is not None and size > axis.maximum):
                self._refuse_size(axis, place, dimension, size)
            for other_place, other_dimension in one.uses[1:]:
                other = shapes[other_place][other_dimension]
                if other != size:
                    raise InvalidRequest(
                        f"{self.rules[other_place].label}: axis '{axis.name}' (dimension {other_dimension}) is {other} "
                        f"but {size} in input {quoted(self.rules[place].name)}: they must be the same"
                    )

    def check_outputs(self, names: Sequence[str]) -> None:
        """Raises `InvalidRequest` where an output is asked for that the model does not have, or twice."""
        seen: set[str] = set()
        for name in names[: len(self.outputs) + 1]:
            if name not in self.outputs:
                known = ", ".join(quoted(output) for output in self.outputs)
                raise InvalidRequest(f"unknown output {quoted(name)} for model {quoted(self.model)}; it gives {known}")
            if name in seen:
                raise InvalidRequest(f"output {quoted(name)} for model {quoted(self.model)} is asked for twice")
            seen.add(name)

    def _refuse_size(self, axis: Axis, place: int, dimension: int, size: int) -> None:
        label = self.rules[place].label
        if axis.name == BATCH:
            if size < axis.minimum:
                raise InvalidRequest(f"{label}: {size} rows came, at least {axis.minimum} must")
            raise InvalidRequest(f"{label}: {size} rows came, at most {axis.maximum} may; send several requests")
        most = "no upper bound" if axis.maximum is None else f"at most {axis.maximum}"
        raise InvalidRequest(
            f"{label}: axis '{axis.name}' (dimension {dimension}) is {size}; it is at least {axis.minimum}, {most}"
        )

    def _takes(self) -> str:
        return "it takes " + (", ".join(quoted(rule.name) for rule in self.rules) or "no inputs")


def _axis_rules(signature: Signature, max_batch_rows: int) -> tuple[_AxisRule, ...]:
    uses: dict[str, list[tuple[int, int]]] = {}
    for place, spec in enumerate(signature.inputs):
        for dimension, size in enumerate(spec.shape):
            if isinstance(size, str):
                uses.setdefault(size, []).append((place, dimension))
    bounds = {axis.name: axis for axis in signature.axes}
    rules = []
    for name, places in uses.items():
        axis = bounds.get(name, Axis(name))
        if name == BATCH and max_batch_rows:
            axis = Axis(name, axis.minimum, min(max_batch_rows, axis.maximum or max_batch_rows))
        rules.append(_AxisRule(axis, tuple(places)))
    return tuple(rules)


def shape_text(shape: Sequence[int | str]) -> str:
    """At most eight dimensions of a shape, for a message."""
    shown = [str(size) for size in shape[:8]] + (["..."] if len(shape) > 8 else [])
    return f"[{', '.join(shown)}]"
