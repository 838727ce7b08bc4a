"""Cuts a program into stages that give, one after the other, exactly what the whole gives.

A cut falls between two steps. What later stages need and earlier ones know travels: live tensors, and original inputs.
Three things make it small and exact. A value that is only another look at one (a view), or integer arithmetic on the
inputs (attention masks), is computed again instead of carried. A tensor whose elements lie in another order than its
dimensions travels in its own order, so that the kernels after the cut see the same strides. Sizes are read again from
the shapes of what arrives.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final

import torch

from worker.errors import InvalidRequest
from worker.expression import Size, evaluate, solve, symbols
from worker.operators import is_pointwise, is_view
from worker.program import DATATYPES, Program, Ref, Step, Value

MASK_SHRINKS: Final = 8
"""Integer inputs travel instead of masks made from them, though an int64 input is 8 times as large as its bool mask."""

DENSE_SUFFIX: Final = "_dense"


def cut(program: Program, points: Sequence[int]) -> tuple[Program, ...]:
    """The stages of `program`, cut before the steps at `points` (ascending, each from 1 to the last step).

    Stage 0 takes the program's inputs, the last stage gives its outputs; in between, the outputs of a stage are the
    inputs of the next, in the same order and under the same names. Each stage holds only the weights it uses.

    Raises:
        InvalidRequest: points that are not ascending or lie outside the program.
    """
    edges = [0, *points, len(program.steps)]
    if points and any(low >= high for low, high in pairwise(edges)):
        raise InvalidRequest(
            f"cut points {list(points)}: expected ascending numbers from 1 to {len(program.steps) - 1}"
        )
    carrier = Carrier(program)
    stages: list[Program] = []
    outputs: tuple[str, ...] = program.outputs
    for low, high in reversed(list(pairwise(edges))):
        stage, outputs = _stage(program, carrier, low, high, outputs)
        stages.append(stage)
    return tuple(reversed(stages))


class Carrier:
    """Decides, for a value that is needed after a cut, what travels instead of it and what is computed again."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._sizes = {name: program.hints.get(name, 8) for name in _symbols(program)}
        self.maker = {name: index for index, step in enumerate(program.steps) for name in step.outputs if name}
        self._order = {name: index for index, name in enumerate((*program.inputs, *self.maker))}
        self._light: dict[str, frozenset[str] | None] = {}

    def bytes_of(self, name: str) -> int:
        """Bytes of a value at the sizes of the captured example."""
        return self._program.values[name].bytes_at(self._sizes)

    def sort(self, names: Iterable[str]) -> tuple[str, ...]:
        """Inputs first, then values, both in the program's order."""
        return tuple(sorted(names, key=self._order.__getitem__))

    def carry(self, needed: Iterable[str], low: int) -> tuple[set[str], set[int]]:
        """What travels over a cut before step `low` so that `needed` is known after it, and the steps to repeat."""
        travels: set[str] = set()
        repeated: set[int] = set()
        pending = [name for name in needed if name not in self._program.weights]
        while pending:
            name = pending.pop()
            maker = self.maker.get(name)
            if maker is not None and maker >= low:
                continue
            if maker is None or not self._cheaper_again(name):
                travels.add(name)
            elif maker not in repeated:
                repeated.add(maker)
                pending.extend(used for used in self._program.steps[maker].uses if used not in self._program.weights)
        return travels, repeated

    def _cheaper_again(self, name: str) -> bool:
        step = self._program.steps[self.maker[name]]
        sources = self.light_sources(name)
        if sources is not None:
            return sum(map(self.bytes_of, sources)) <= MASK_SHRINKS * self.bytes_of(name)
        used = [source for source in step.uses if source not in self._program.weights]
        return (
            is_view(step.operator)  # type: ignore[arg-type]
            and not step.several
            and len(used) == 1
            and used[0] == step.uses[0]
            and self.bytes_of(used[0]) <= self.bytes_of(name)
        )

    def light_sources(self, name: str) -> frozenset[str] | None:
        """The integer inputs that a value is plain mask arithmetic on; None when it is more than that."""
        if name not in self._light:
            self._light[name] = self._find_light_sources(name)
        return self._light[name]

    def _find_light_sources(self, name: str) -> frozenset[str] | None:
        value = self._program.values[name]
        if name in self._program.inputs:
            return None if value.dtype.is_floating_point else frozenset({name})
        if name in self._program.weights:
            return None
        step = self._program.steps[self.maker[name]]
        if value.dtype.is_floating_point and not (step.uses and _elementwise(step)):
            return None
        found: set[str] = set()
        for used in step.uses:
            sources = self.light_sources(used)
            if sources is None:
                return None
            found |= sources
        return frozenset(found)


def _elementwise(step: Step) -> bool:
    operator = step.operator
    if not isinstance(operator, torch._ops.OpOverload):
        return False
    return is_pointwise(operator) or is_view(operator) or operator._schema.name in {"aten::_to_copy", "aten::clone"}


def _stage(
    program: Program, carrier: Carrier, low: int, high: int, outputs: tuple[str, ...]
) -> tuple[Program, tuple[str, ...]]:
    """The stage of steps [low, high) that gives `outputs`, and the values (by the whole program's names) it takes."""
    own = program.steps[low:high]
    needed = {name for step in own for name in step.uses} | set(outputs)
    if low == 0:
        travels, repeated = set(program.inputs), set[int]()
    else:
        travels, repeated = carrier.carry(needed, low)
    steps = [program.steps[index] for index in sorted(repeated)] + list(own)
    if low:
        travels |= _size_sources(program, travels, steps)
    inputs = carrier.sort(travels)
    values = dict(program.values)
    last = high == len(program.steps)
    arriving: dict[str, str] = {}
    unpacking: list[Step] = []
    if low:
        for name in inputs:
            packed = _packed(name, program.values[name], carrier)
            arriving[name] = name if packed is None else packed.name
            if packed is not None:
                values[packed.name] = packed.value
                unpacking.append(packed.unpack(name))
    packing: list[Step] = []
    leaving: list[str] = []
    for name in outputs:
        packed = None if last else _packed(name, program.values[name], carrier)
        if packed is None:
            leaving.append(name)
        elif name in inputs and low:
            leaving.append(packed.name)
        else:
            values[packed.name] = packed.value
            packing.append(packed.pack(name))
            leaving.append(packed.name)
    stage = Program(
        inputs=tuple(arriving.get(name, name) for name in inputs),
        outputs=tuple(leaving),
        steps=(*unpacking, *steps, *packing),
        values=values,
        weights=program.weights,
        bounds=program.bounds,
        hints=program.hints,
    ).without_dead_steps()
    return stage, inputs


def _size_sources(program: Program, travels: set[str], steps: Sequence[Step]) -> set[str]:
    """Original inputs that must travel because only their shape tells a size that the steps use."""
    used = {name for step in steps for size in step.sizes for name in symbols(size)}
    known = {solution[0] for name in travels for size in program.values[name].shape if (solution := solve(size))}
    extra: set[str] = set()
    for symbol in sorted(used - known):
        holders = [
            name
            for name in program.inputs
            if any((solution := solve(size)) and solution[0] == symbol for size in program.values[name].shape)
        ]
        extra.update(holders[:1])
    return extra


@dataclass(frozen=True, slots=True)
class _Packed:
    """A travelling tensor in the order in which its elements lie, and the steps there and back."""

    name: str
    value: Value
    order: tuple[int, ...]

    def pack(self, source: str) -> Step:
        if self.order == tuple(range(len(self.order))):
            return Step(
                torch.ops.aten.clone.default, (Ref(source),), {"memory_format": torch.contiguous_format}, (self.name,)
            )
        return Step(torch.ops.aten.permute.default, (Ref(source), list(self.order)), {}, (self.name,))

    def unpack(self, target: str) -> Step:
        inverse = sorted(range(len(self.order)), key=self.order.__getitem__)
        return Step(torch.ops.aten.permute.default, (Ref(self.name), inverse), {}, (target,))


def _packed(name: str, value: Value, carrier: Carrier) -> _Packed | None:
    """How a tensor travels when it is not already row-major; None when it is, or is an original input."""
    if name in carrier._program.inputs:
        return None
    shape = [int(evaluate(size, carrier._sizes)) for size in value.shape]
    strides = [int(evaluate(size, carrier._sizes)) for size in value.strides]
    natural = tuple(range(len(shape)))
    if _row_major(shape, strides, natural):
        return None
    order = tuple(sorted(natural, key=lambda axis: -strides[axis]))
    if not _row_major(shape, strides, order) or order[0] != 0:
        order = natural
    dense = tuple(value.shape[axis] for axis in order)
    return _Packed(name + DENSE_SUFFIX, Value(value.dtype, dense, _row_major_strides(dense)), order)


def _row_major(shape: Sequence[int], strides: Sequence[int], order: Sequence[int]) -> bool:
    expected = 1
    for axis in reversed(order):
        if shape[axis] != 1 and strides[axis] != expected:
            return False
        expected *= shape[axis]
    return True


def _row_major_strides(shape: Sequence[Size]) -> tuple[Size, ...]:
    strides: list[Size] = []
    stride: Size = 1
    for size in reversed(shape):
        strides.append(stride)
        stride = stride * size
    return tuple(reversed(strides))


def _symbols(program: Program) -> set[str]:
    return {
        name for value in program.values.values() for size in (*value.shape, *value.strides) for name in symbols(size)
    }


def travel(program: Program) -> tuple[tuple[int, int] | None, ...]:
    """The (bytes, tensors) that cross a cut at each point from 0 to the number of steps, at the example's sizes.

    None where no cut should be: at the ends, where something would travel that the wire has no name for, or whose first
    axis is not the batch although the program's inputs' are.
    """
    carrier = Carrier(program)
    batch = _batch_size(program)
    needed_from: list[set[str]] = [set(program.outputs)]
    for step in reversed(program.steps):
        needed_from.append(needed_from[-1] | set(step.uses))
    needed_from.reverse()
    crossing: list[tuple[int, int] | None] = [None]
    for point in range(1, len(program.steps)):
        travels, _ = carrier.carry(needed_from[point], point)
        values = [program.values[name] for name in travels]
        fits = all(
            value.dtype in DATATYPES and (batch is None or (value.shape and value.shape[0] == batch))
            for value in values
        )
        computes = travels - set(program.inputs)
        crossing.append((sum(map(carrier.bytes_of, travels)), len(travels)) if fits and computes else None)
    return (*crossing, None)


def _batch_size(program: Program) -> Size | None:
    """The size that is the first of every input, as it is in a program whose requests can be put together."""
    first = {program.values[name].shape[:1] for name in (*program.inputs, *program.outputs)}
    if len(first) == 1 and (shape := first.pop()) and not isinstance(shape[0], int):
        return shape[0]
    return None


def part(program: Program) -> tuple[Program, tuple[int | None, ...]]:
    """What a runtime must compute: the program without the outputs that are inputs passed on.

    Also, for each output, the place of the input that it is, or None where it is computed.
    """
    places = {name: place for place, name in enumerate(program.inputs)}
    passed = tuple(places.get(name) for name in program.outputs)
    computed = tuple(name for name, place in zip(program.outputs, passed, strict=True) if place is None)
    return replace(program, outputs=computed).without_dead_steps(), passed
