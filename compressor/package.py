"""Makes an artifact of a source: capture, quantize, measure, cut, compile, write."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import torch

from compressor.capture import capture
from compressor.measure import example_inputs, step_seconds, threads
from compressor.model import Model
from compressor.sources import read_source
from worker.artifact import write_artifact
from worker.cut import choose_points, cut, travel
from worker.errors import InvalidRequest
from worker.expression import rename
from worker.manifest import (
    PROGRAM,
    AxisEntry,
    CutEntry,
    FileEntry,
    Manifest,
    ProfileEntry,
    RecipeEntry,
    TensorEntry,
)
from worker.program import DATATYPES, Program
from worker.runtime import check_device
from worker.stages import describe_stages

Progress = Callable[[str], None]
"""Told what begins now, in a few words."""


def package(
    source: str | Path | Model,
    out: Path,
    *,
    quantize: Literal["int8"] | None = None,
    stages: Sequence[int] | None = None,
    device: str = "cpu",
    runtime: Literal["fastest", "eager"] = "fastest",
    handler: str | None = None,
    progress: Progress = lambda _: None,
) -> Path:
    """Packages `source` as the next version under `out` (models/minilm) and returns its folder.

    Args:
        quantize: "int8": linear layers with 8-bit weights and activations.
        stages: numbers of stages to cut and compile for; others can still be served, uncompiled. None: 1, and 2 where
            the program can be cut.
        runtime: "eager": compile nothing.
        handler: "module:Class"; None: the source's own.
        progress: told of each long step.
    """
    device = check_device(device)
    model = source if isinstance(source, Model) else read_source(source)

    def fill(folder: Path) -> Manifest:
        progress("capturing the program")
        program = capture(model, folder / PROGRAM)
        manifest = _describe(
            model, program, str(source) if not isinstance(source, Model) else type(model.module).__name__
        )
        progress("measuring its steps")
        sizes = dict(program.hints)
        with threads(1):
            seconds = step_seconds(program, example_inputs(program, sizes))
        profile = ProfileEntry(sizes=sizes, device="cpu", seconds=seconds)
        crossing = travel(program)
        cuts = []
        most = 1 + sum(item is not None for item in crossing)
        for count in stages or range(1, min(2, most) + 1):
            points = choose_points(seconds, crossing, count)
            parts = cut(program, points)
            cuts.append(CutEntry(points=points, stages=describe_stages(program, parts, manifest)))
        return manifest.model_copy(
            update={"profile": profile, "cuts": tuple(cuts), "handler": handler or model.handler}
        )

    return write_artifact(out, fill)


def _describe(model: Model, program: Program, source: str) -> Manifest:
    axes: dict[str, AxisEntry] = {}
    names: dict[str, str] = {}
    inputs = []
    for value, item in zip(program.inputs, model.inputs, strict=True):
        known = program.values[value]
        shape: list[int | str] = []
        for size, axis in zip(known.shape, item.axes, strict=True):
            if isinstance(size, int):
                shape.append(size)
                continue
            if axis is None:
                raise InvalidRequest(f"input {item.name!r}: the dimension {size} has no name")
            names[str(size)] = axis
            minimum, maximum = program.bounds.get(str(size), (1, None))
            axes[axis] = AxisEntry(name=axis, minimum=max(1, minimum), maximum=maximum)
            shape.append(axis)
        inputs.append(TensorEntry(name=item.name, datatype=DATATYPES[known.dtype], shape=tuple(shape), pad=item.pad))
    outputs = []
    labels = model.outputs or (
        ("output",) if len(program.outputs) == 1 else tuple(f"output_{index}" for index in range(len(program.outputs)))
    )
    if len(labels) != len(program.outputs):
        raise InvalidRequest(f"{len(labels)} names for {len(program.outputs)} outputs")
    for value, label in zip(program.outputs, labels, strict=True):
        known = program.values[value]
        shape = [size if isinstance(size, int) else rename(size, names) for size in known.shape]
        outputs.append(TensorEntry(name=label, datatype=DATATYPES[known.dtype], shape=tuple(shape)))
    recipe = RecipeEntry(source=source, key="0" * 64, torch=torch.__version__)
    return Manifest(
        format=1,
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        axes=tuple(axes.values()),
        recipe=recipe,
        profile=ProfileEntry(sizes={}, device="cpu", seconds=()),
        files={PROGRAM: FileEntry(sha256="0" * 64, bytes=0)},
    )
