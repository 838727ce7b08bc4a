"""A captured program: a flat list of operator calls on named values, and the weights that some of them use.

It knows nothing about files (`worker/pt2.py` reads it from one) nor about stages (`worker/cut.py` makes smaller
programs out of it). Running it is a loop over its steps; no code is generated or evaluated.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, Final

import torch

import worker.integer_product  # noqa: F401 -- int8 products of programs and modules, where PyTorch's own are slow
from worker.errors import Internal
from worker.expression import Size, evaluate, solve, symbols

DATATYPES: Final[Mapping[torch.dtype, str]] = {
    torch.bool: "BOOL",
    torch.uint8: "UINT8",
    torch.uint16: "UINT16",
    torch.uint32: "UINT32",
    torch.uint64: "UINT64",
    torch.int8: "INT8",
    torch.int16: "INT16",
    torch.int32: "INT32",
    torch.int64: "INT64",
    torch.float16: "FP16",
    torch.bfloat16: "BF16",
    torch.float32: "FP32",
    torch.float64: "FP64",
}
"""The protocol's name of each element type that can travel."""


@dataclass(frozen=True, slots=True)
class Value:
    """What is known of a value before it is computed. Sizes and strides are in elements."""

    dtype: torch.dtype
    shape: tuple[Size, ...]
    strides: tuple[Size, ...]

    def bytes_at(self, sizes: Mapping[str, int]) -> int:
        """Bytes of the value when the symbols have these sizes."""
        return int(prod(evaluate(size, sizes) for size in self.shape)) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Ref:
    """An argument that is a value, by name."""

    name: str


@dataclass(frozen=True, slots=True)
class SizeRef:
    """An argument that is a size, known once the inputs are."""

    size: Size


@dataclass(frozen=True, slots=True)
class Step:
    """One operator call. `outputs`: names of its results, None where nobody uses one.

    `several`: the operator gives a sequence, whose items the outputs are; else there is one output.
    """

    operator: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    outputs: tuple[str | None, ...]
    several: bool = False

    @property
    def uses(self) -> tuple[str, ...]:
        """Names of the values that it takes, each once."""
        leaves = _leaves((*self.args, *self.kwargs.values()))
        return tuple(dict.fromkeys(leaf.name for leaf in leaves if isinstance(leaf, Ref)))

    @property
    def sizes(self) -> tuple[Size, ...]:
        leaves = _leaves((*self.args, *self.kwargs.values()))
        return tuple(dict.fromkeys(leaf.size for leaf in leaves if isinstance(leaf, SizeRef)))


@dataclass(frozen=True, slots=True)
class Program:
    """`values` describes inputs, weights and every step's outputs; `bounds` each symbol's smallest and largest size."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    steps: tuple[Step, ...]
    values: Mapping[str, Value]
    weights: Mapping[str, torch.Tensor]
    bounds: Mapping[str, tuple[int, int | None]] = field(default_factory=dict)
    hints: Mapping[str, int] = field(default_factory=dict)
    """The size that each symbol had in the example that the program was captured with."""

    def without_dead_steps(self) -> "Program":
        """The same program without the steps and weights whose results nobody uses."""
        needed = set(self.outputs)
        kept: list[Step] = []
        for step in reversed(self.steps):
            if not needed.isdisjoint(name for name in step.outputs if name):
                outputs = tuple(name if name in needed else None for name in step.outputs)
                kept.append(replace(step, outputs=outputs))
                needed.update(step.uses)
        weights = {name: weight for name, weight in self.weights.items() if name in needed}
        known = {*self.inputs, *weights, *(name for step in kept for name in step.outputs if name)}
        values = {name: value for name, value in self.values.items() if name in known}
        return replace(self, steps=tuple(reversed(kept)), values=values, weights=weights)

    def on(self, device: str) -> "Program":
        """The same program with its weights, and the tensors it makes, on `device`."""
        target = torch.device(device)
        steps = tuple(
            replace(step, args=_moved(step.args, target), kwargs=_moved(step.kwargs, target)) for step in self.steps
        )
        return replace(self, steps=steps, weights={name: weight.to(target) for name, weight in self.weights.items()})


def _leaves(arguments: Sequence[Any]) -> Iterator[Any]:
    for argument in arguments:
        if isinstance(argument, (list, tuple)):
            yield from _leaves(argument)
        else:
            yield argument


def _moved(argument: Any, device: torch.device) -> Any:
    match argument:
        case torch.device():
            return device
        case list() | tuple():
            return type(argument)(_moved(item, device) for item in argument)
        case dict():
            return {key: _moved(item, device) for key, item in argument.items()}
    return argument


class Interpreter:
    """Runs a program step by step. A value is dropped after its last use.

    `torch.export` can trace a call, so the same loop serves eager execution and the compiler.
    """

    def __init__(self, program: Program) -> None:
        self._symbols = symbol_sources(program)
        places = {name: place for place, name in enumerate((*program.inputs, *program.weights))}
        self._inputs = len(program.inputs)
        self._steps: list[tuple[Callable[..., Any], Any, Any, tuple[int | None, ...], bool, tuple[int, ...]]] = []
        sizes = dict.fromkeys(size for step in program.steps for size in step.sizes)
        last_use = {name: index for index, step in enumerate(program.steps) for name in step.uses}
        keep = {*program.outputs, *program.inputs, *program.weights}
        for index, step in enumerate(program.steps):
            for name in step.outputs:
                if name is not None:
                    places[name] = len(places)
            done = tuple(places[name] for name in step.uses if last_use[name] == index and name not in keep)
            targets = tuple(None if name is None else places[name] for name in step.outputs)
            self._steps.append((step.operator, step.args, step.kwargs, targets, step.several, done))
        self._sizes = {size: len(places) + position for position, size in enumerate(sizes)}
        self._steps = [
            (operator, self._placed(args, places), self._placed(kwargs, places), targets, several, done)
            for operator, args, kwargs, targets, several, done in self._steps
        ]
        self._outputs = tuple(places[name] for name in program.outputs)
        self._room = len(places) + len(sizes) - self._inputs - len(program.weights)

    def _placed(self, argument: Any, places: Mapping[str, int]) -> Any:
        match argument:
            case Ref(name):
                return _Place(places[name])
            case SizeRef(size):
                return _Place(self._sizes[size])
            case tuple():
                return tuple(self._placed(item, places) for item in argument)
            case list():
                return [self._placed(item, places) for item in argument]
            case dict():
                return {key: self._placed(item, places) for key, item in argument.items()}
        return argument

    def run(self, inputs: Sequence[torch.Tensor], weights: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """The program's outputs for inputs and weights in the program's order."""
        lengths = {name: read(inputs) for name, read in self._symbols.items()}
        slots: list[Any] = [*inputs, *weights, *([None] * self._room)]
        for size, place in self._sizes.items():
            slots[place] = evaluate(size, lengths)
        for operator, args, kwargs, targets, several, done in self._steps:
            result = operator(*_filled(args, slots), **_filled(kwargs, slots))
            if several:
                for target, item in zip(targets, result, strict=True):
                    if target is not None:
                        slots[target] = item
            else:
                slots[targets[0]] = result  # type: ignore[index]
            for place in done:
                slots[place] = None
        return tuple(slots[place] for place in self._outputs)


@dataclass(frozen=True, slots=True)
class _Place:
    index: int


def _filled(argument: Any, slots: Sequence[Any]) -> Any:
    kind = type(argument)
    if kind is _Place:
        return slots[argument.index]
    if kind is tuple or kind is list:
        return kind([_filled(item, slots) for item in argument])
    if kind is dict:
        return {key: _filled(item, slots) for key, item in argument.items()}
    return argument


def symbol_sources(program: Program) -> dict[str, Callable[[Sequence[torch.Tensor]], Any]]:
    """For each symbol that sizes in the program use, how to read it from the inputs' shapes.

    Raises:
        Internal: a symbol that no dimension of an input determines.
    """
    sources: dict[str, Callable[[Sequence[torch.Tensor]], Any]] = {}
    exact: set[str] = set()
    for place, name in enumerate(program.inputs):
        for axis, size in enumerate(program.values[name].shape):
            solution = solve(size)
            if solution is None:
                continue
            symbol, factor, offset = solution
            if symbol not in sources or (factor == 1 and offset == 0 and symbol not in exact):
                sources[symbol] = _reader(place, axis, factor, offset)
                if factor == 1 and offset == 0:
                    exact.add(symbol)
    used = {name for step in program.steps for size in step.sizes for name in symbols(size)}
    unknown = sorted(used - set(sources))
    if unknown:
        raise Internal(f"the sizes {', '.join(unknown)} cannot be read from the inputs {', '.join(program.inputs)}")
    return {name: read for name, read in sources.items() if name in used}


def _reader(place: int, axis: int, factor: int, offset: int) -> Callable[[Sequence[torch.Tensor]], Any]:
    if factor == 1 and offset == 0:
        return lambda inputs: inputs[place].shape[axis]
    return lambda inputs: (inputs[place].shape[axis] - offset) // factor


class ProgramModule(torch.nn.Module):
    """A program as a module that `torch.export` can capture again."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        self._interpreter = Interpreter(program)
        self._names: list[str] = []
        for index, weight in enumerate(program.weights.values()):
            self.register_buffer(f"weight_{index}", weight)
            self._names.append(f"weight_{index}")

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self._interpreter.run(inputs, [getattr(self, name) for name in self._names])
