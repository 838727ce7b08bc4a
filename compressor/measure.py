"""Measures a program's steps, and its stages in each runtime, on this machine."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from worker.expression import evaluate
from worker.program import Interpreter, Program, Step


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Runs with `count` intra-op threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def example_inputs(program: Program, sizes: Mapping[str, int], *, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Inputs of these sizes (symbol to length): normal numbers, and ones for integers, which any index can be."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for name in program.inputs:
        value = program.values[name]
        shape = [int(evaluate(size, sizes)) for size in value.shape]
        if value.dtype.is_floating_point:
            made.append(torch.randn(shape, generator=generator).to(value.dtype))
        else:
            made.append(torch.ones(shape, dtype=value.dtype))
    return tuple(made)


def step_seconds(program: Program, inputs: Sequence[torch.Tensor], *, rounds: int = 5) -> tuple[float, ...]:
    """Median seconds of each step, uncompiled."""
    samples: list[list[float]] = [[] for _ in program.steps]

    def timed(index: int, operator: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            result = operator(*args, **kwargs)
            samples[index].append(time.perf_counter() - started)
            return result

        return call

    steps = tuple(
        Step(timed(index, step.operator), step.args, step.kwargs, step.outputs, step.several)
        for index, step in enumerate(program.steps)
    )
    watched = Program(
        program.inputs, program.outputs, steps, program.values, program.weights, program.bounds, program.hints
    )
    interpreter = Interpreter(watched)
    weights = tuple(program.weights.values())
    with torch.inference_mode():
        for _ in range(rounds + 1):
            interpreter.run(inputs, weights)
    return tuple(statistics.median(taken[1:]) for taken in samples)
