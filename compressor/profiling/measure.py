"""Measures programs on this machine: each step, a whole runtime, and how far two results are apart."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final

import torch

from worker.collate import TORCH_TYPES
from worker.expression import evaluate, parse
from worker.nouns import BATCH, Axis, Signature, TensorSpec
from worker.program import Interpreter, Program

ROWS: Final = (1, 8)
"""Rows of the batches that are measured."""

Clock = Callable[[], float]


def clock_of(device: str) -> Clock:
    """A clock of seconds for work on one thread: of that thread alone on the CPU, so that other work does not count."""
    return time.thread_time if device == "cpu" else time.perf_counter


LENGTH: Final = 64
"""Length of every other axis while measuring, within its bounds."""


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Runs with `count` intra-op threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def measured_sizes(program: Program, names: Mapping[str, str]) -> tuple[dict[str, int], ...]:
    """The sizes to measure at, symbol to length. `names` tells which axis a symbol is."""

    def length(symbol: str, rows: int) -> int:
        minimum, maximum = program.bounds.get(symbol, (1, None))
        wanted = rows if names[symbol] == BATCH else LENGTH
        return max(minimum, min(wanted, maximum or wanted))

    found = [{symbol: length(symbol, rows) for symbol in names} for rows in ROWS]
    return tuple(sizes for place, sizes in enumerate(found) if sizes not in found[:place])


def example_inputs(
    program: Program, sizes: Mapping[str, int], examples: Sequence[torch.Tensor] = ()
) -> tuple[torch.Tensor, ...]:
    """Inputs of these sizes (symbol to length).

    Made of the given examples, repeated; without them, of normal numbers, and of ones where integers are taken.
    """
    generator = torch.Generator().manual_seed(0)
    made = []
    for place, name in enumerate(program.inputs):
        value = program.values[name]
        shape = [int(evaluate(size, sizes)) for size in value.shape]
        if examples:
            made.append(tiled(examples[place], shape))
        elif value.dtype.is_floating_point:
            made.append(torch.randn(shape, generator=generator).to(value.dtype))
        else:
            made.append(torch.ones(shape, dtype=value.dtype))
    return tuple(made)


def tiled(example: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """The example, repeated along each axis up to this shape."""
    tensor = example.detach().cpu()
    for axis, size in enumerate(shape):
        tensor = tensor.index_select(axis, torch.arange(size) % tensor.shape[axis])
    return tensor.contiguous()


def step_seconds(program: Program, inputs: Sequence[torch.Tensor], *, rounds: int = 5) -> tuple[float, ...]:
    """Median seconds of each step on this thread, uncompiled, on the CPU."""
    samples: list[list[float]] = [[] for _ in program.steps]

    def timed(index: int, operator: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            started = time.thread_time()
            result = operator(*args, **kwargs)
            samples[index].append(time.thread_time() - started)
            return result

        return call

    watched = tuple(replace(step, operator=timed(index, step.operator)) for index, step in enumerate(program.steps))
    interpreter = Interpreter(replace(program, steps=watched))
    weights = tuple(program.weights.values())
    with torch.inference_mode():
        for _ in range(rounds + 1):
            interpreter.run(inputs, weights)
    return tuple(statistics.median(taken[1:]) for taken in samples)


def seconds_in_turns(
    runs: Sequence[Callable[[Sequence[torch.Tensor]], object]],
    inputs: Sequence[torch.Tensor],
    *,
    clock: Clock,
    rounds: int,
    least_rounds: int,
    enough_s: float,
) -> list[list[float]]:
    """Seconds of each run in each round. They take turns, so that a slow moment of the machine meets all of them.

    After `least_rounds` no round begins once `enough_s` seconds have passed, a first run of each included, which is not
    counted.
    """
    taken: list[list[float]] = [[] for _ in runs]
    until = time.monotonic() + enough_s
    for run in runs:
        run(inputs)
    for number in range(rounds):
        if number >= least_rounds and time.monotonic() > until:
            break
        for run, seconds in zip(runs, taken, strict=True):
            started = clock()
            run(inputs)
            seconds.append(clock() - started)
    return taken


def distance(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> float:
    """The largest relative distance of a tensor from what it should be: |found - expected| / |expected|.

    Infinite where types or shapes differ, where integers differ at all, or where one has NaN and the other has not.
    """
    if len(found) != len(expected):
        return float("inf")
    return max((_distance(a, b) for a, b in zip(found, expected, strict=True)), default=0.0)


def _distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return float("inf")
    if not expected.dtype.is_floating_point:
        return 0.0 if torch.equal(found, expected) else float("inf")
    a, b = found.double(), expected.double()
    finite = b.isfinite()
    if not torch.equal(a.isfinite(), finite) or not torch.equal(a.isnan(), b.isnan()):
        return float("inf")
    a, b = a[finite], b[finite]
    length = float(b.norm())
    apart = float((a - b).norm())
    return apart / length if length else (0.0 if apart == 0 else float("inf"))


def cosine(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The mean cosine between rows (all but the last axis count as rows)."""
    a, b = found.double().reshape(-1, found.shape[-1]), expected.double().reshape(-1, expected.shape[-1])
    return float(torch.nn.functional.cosine_similarity(a, b).mean())


def example_tensors(signature: Signature, rows: int, length: int) -> list[torch.Tensor]:
    """Inputs of a stage, named axes at `length` or as near as their bounds allow: normal numbers, and ones."""
    bounds = {axis.name: axis for axis in signature.axes}
    generator = torch.Generator().manual_seed(0)

    def made(spec: TensorSpec) -> torch.Tensor:
        shape = [_extent(dim, rows, length, bounds) for dim in spec.shape]
        kind = TORCH_TYPES[spec.datatype]
        if kind.is_floating_point:
            return torch.randn(shape, generator=generator).to(kind)
        return torch.ones(shape, dtype=kind)

    return [made(spec) for spec in signature.inputs]


def _extent(dim: int | str, rows: int, length: int, bounds: Mapping[str, Axis]) -> int:
    size = parse(str(dim))
    if isinstance(size, int):
        return size
    lengths = {}
    for free in size.free_symbols:
        axis = bounds.get(str(free))
        wanted = rows if str(free) == BATCH else length
        lengths[str(free)] = axis.nearest(wanted) if axis is not None else wanted
    return int(evaluate(size, lengths))
