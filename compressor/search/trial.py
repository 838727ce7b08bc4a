"""What one trial measures, as functions that any process can run: they take values and give JSON.

Nothing here knows of Ray, nor of what other trials there are.
"""

import copy
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import nn

from compressor.capture import Flat, capture
from compressor.compress import compress_
from compressor.evaluation.evaluation import Run, find_evaluation, make_importable
from compressor.evaluation.records import Records
from compressor.model import Model
from compressor.packaging.compile import CompileError, compile_stage
from compressor.profiling.measure import clock_of, threads, tiled
from compressor.search.layer_programs import LayerCall, layer_model
from compressor.search.objective import Objective
from compressor.search.store import Result
from compressor.sources.sources import read_source
from compressor.step import Context, Step, stored_bytes
from compressor.steps import read_steps
from worker.errors import Internal, ShardlineError
from worker.program import Program
from worker.pt2 import read_program
from worker.runtime import Aot, Eager, Runtime, keep_freed_memory
from worker.seal import DEFAULT_KEY

MOST_REFERENCE_BYTES: Final = 2**28
"""Of the uncompressed model's outputs that are kept to compare with; what comes after is judged by the figure alone."""

Described = Sequence[Mapping[str, Any]]
"""Steps as a recipe holds them."""


@dataclass(frozen=True, slots=True, eq=False)
class Setting:
    """What all trials of a search share; two with the same key are the same.

    runtime: "eager": compile nothing, and time uncompiled programs.
    inputs: batches of calibration data, for steps that look at activations.
    import_from: folders in which sources and functions stand.
    stages: in which artifacts are judged and timed, as they are served; trials take the model as one.
    machine_key: vouches for compiled packages; without it an artifact runs uncompiled.
    """

    source: str | Path | Model
    evaluation: str
    calibration: Records
    objective: Objective
    device: str = "cpu"
    stages: int = 1
    seed: int = 0
    runtime: Literal["fastest", "eager"] = "fastest"
    key: str = ""
    import_from: tuple[str, ...] = ()
    inputs: tuple[tuple[torch.Tensor, ...], ...] = ()
    machine_key: Path = DEFAULT_KEY

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Setting) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


@lru_cache(maxsize=1)
def _loaded(setting: Setting) -> Model:
    for folder in reversed(setting.import_from):
        make_importable(folder)
    if isinstance(setting.source, Model):
        return setting.source
    try:
        return read_source(setting.source)
    except ShardlineError as error:  # it was read at the door: this says nothing of what is tried
        raise Internal(str(error)) from error


def fresh_model(setting: Setting) -> Model:
    """The source's model; its module is a copy that may be changed."""
    model = _loaded(setting)
    return Model(
        copy.deepcopy(model.module).eval(),
        model.inputs,
        model.outputs,
        model.axes,
        model.handler,
        model.assets,
        model.identity,
    )


def compressed(setting: Setting, steps: Described) -> Model:
    """The source's model after these steps.

    Raises:
        ShardlineError: a step cannot be done.
    """
    model = fresh_model(setting)
    if not steps:
        return model
    made = compress_(model.module, *read_steps(steps), context=context_of(setting, model))
    return Model(made.module, model.inputs, model.outputs, model.axes, model.handler, model.assets, model.identity)


def context_of(setting: Setting, model: Model) -> Context:
    return Context.of(model, calibration=setting.inputs, seed=setting.seed, target=setting.device)


class _Reference:
    """The uncompressed model's outputs, call by call, on the calibration data."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self.outputs: list[torch.Tensor] = []
        self._bytes = 0

    def __call__(self, inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        found = self._run(inputs)
        if self._bytes < MOST_REFERENCE_BYTES and found[0].is_floating_point():
            self.outputs.append(found[0])
            self._bytes += found[0].numel() * found[0].element_size()
        return found


class _Compared:
    """Runs, and adds up how far the outputs are from the reference's."""

    def __init__(self, run: Run, reference: Sequence[torch.Tensor]) -> None:
        self._run = run
        self._left = list(reversed(reference))
        self._apart = self._length = 0.0

    def __call__(self, inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        found = self._run(inputs)
        if self._left:
            expected = self._left.pop().double()
            self._apart += float((found[0].double() - expected).square().sum())
            self._length += float(expected.square().sum())
        return found

    @property
    def distance(self) -> float:
        """The squared relative distance; 0 where there was nothing to compare with."""
        return self._apart / self._length if self._length else 0.0


@lru_cache(maxsize=1)
def _reference(setting: Setting) -> tuple[torch.Tensor, ...]:
    model = fresh_model(setting)  # `module_run` moves what it is given to the device
    watched = _Reference(module_run(model.module, setting.device))
    find_evaluation(setting.evaluation).answers(watched, model, setting.calibration)
    return tuple(watched.outputs)


def module_run(module: nn.Module, device: str) -> Run:
    """Runs a module uncompiled, in inference mode."""
    flat = Flat(module.to(device))

    def run(inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        with torch.no_grad():
            return tuple(tensor.cpu() for tensor in flat(*(item.to(device) for item in inputs)))

    return run


def clocked(setting: Setting, function: Callable[..., Result], *given: Any) -> Result:
    """The function's result, with how long it took."""
    began = time.monotonic()
    result = function(setting, *given)
    return result | {"took_s": time.monotonic() - began}


def judge(setting: Setting, steps: Described) -> Result:
    """The answers on the calibration data, the squared relative distance of the outputs, and the weights' bytes.

    Or why there are none: the steps cannot be done, or what they leave gives no figure.
    """
    with threads(1):
        try:
            model = compressed(setting, steps)
            run = _Compared(module_run(model.module, setting.device), _reference(setting))
            evaluation = find_evaluation(setting.evaluation)
            answers = evaluation.answers(run, model, setting.calibration)
            evaluation.interval(answers, setting.calibration, seed=setting.seed)  # refuses what is not a number
        except Internal:  # such as too little memory: no result, and tried again by whoever searches again
            raise
        except ShardlineError as error:
            return {"problem": str(error)}
    if not math.isfinite(run.distance):
        return {"problem": f"its outputs on calibration data are not finite numbers: they are {run.distance} away"}
    return {"answers": answers.tolist(), "distance": run.distance, "bytes": stored_bytes(model.module)}


def build(setting: Setting, steps: Described, path: Path) -> Result:
    """Writes the compressed model's program, compiled where `setting` says so, as `path`."""
    with threads(1):
        try:
            return _written(compressed(setting, steps), path, setting)
        except Internal:
            raise
        except ShardlineError as error:
            return {"problem": str(error)}


def build_layer(setting: Setting, layer: nn.Module, call: LayerCall, steps: Described, path: Path) -> Result:
    """Writes the program of one layer, after steps that see the layer as "0" of a model that is only it."""
    with threads(1):
        try:
            model = layer_model(nn.Sequential(copy.deepcopy(layer)).eval(), call)
            if steps:
                context = Context.of(model, calibration=((call.small,),), seed=setting.seed, target=setting.device)
                made = compress_(model.module, *read_steps(steps), context=context)
                model = Model(made.module, model.inputs)
            return _written(model, path, setting)
        except ShardlineError as error:
            return {"problem": str(error)}


def _written(model: Model, path: Path, setting: Setting) -> Result:
    """`path` with the program or, where that works, its compiled package. Never half a file."""
    captured = path.with_suffix(".program.pt2")
    partial = path.with_suffix(".partial.pt2")
    try:
        program = capture(model, captured)
        bytes_ = captured.stat().st_size
        if setting.runtime == "eager":
            captured.rename(path)
            return {"file": path.name, "runtime": "eager", "bytes": bytes_}
        try:
            compile_stage(program, partial, frozen=True, device=setting.device)
        except CompileError as error:
            captured.rename(path)
            return {"file": path.name, "runtime": "eager", "bytes": bytes_, "note": str(error)[:300]}
        partial.rename(path)
        return {"file": path.name, "runtime": "aotinductor", "bytes": bytes_}
    finally:
        captured.unlink(missing_ok=True)
        partial.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class Timed:
    """What is to be timed: the file of a build, and the inputs."""

    file: Path
    runtime: str
    inputs: tuple[torch.Tensor, ...]


def seconds_of(programs: Sequence[Timed], device: str, rounds: int, budget_s: float) -> list[float]:
    """Median seconds of a run of each, on one thread, taken in turns so that a slow moment hits all alike.

    `budget_s`: no new round begins after it, but for the first three.
    """
    keep_freed_memory()
    clock = clock_of(device)
    began = clock_of("cuda")()
    taken: list[list[float]] = [[] for _ in programs]
    with threads(1):
        loaded = [load(item.file, item.runtime, device) for item in programs]
        for runtime, item in zip(loaded, programs, strict=True):
            runtime.run(item.inputs)
        for turn in range(rounds):
            if turn >= 3 and clock_of("cuda")() - began > budget_s:
                break
            for place, (runtime, item) in enumerate(zip(loaded, programs, strict=True)):
                started = clock()
                runtime.run(item.inputs)
                taken[place].append(clock() - started)
    return [statistics.median(each) for each in taken]


def load(file: Path, runtime: str, device: str) -> Runtime:
    """A build, ready to run."""
    if runtime == "aotinductor":
        return Aot(file, device)
    program: Program = read_program(file)
    return Eager(program.on(device), device)


def timed_inputs(model: Model, sizes: Mapping[str, int]) -> tuple[torch.Tensor, ...]:
    """The model's examples, repeated to these sizes of its named axes."""
    return tuple(
        tiled(
            item.example,
            [size if axis is None else sizes[axis] for axis, size in zip(item.axes, item.example.shape, strict=True)],
        )
        for item in model.inputs
    )


def block_and_layer_steps(steps: Sequence[Step], layers: Sequence[str]) -> tuple[list[Step], list[Step]]:
    """The steps that need the whole model, and those that change each of `layers` by itself."""
    own = [step for step in steps if set(step.layers) <= set(layers)]
    return [step for step in steps if step not in own], own
