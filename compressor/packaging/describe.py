"""Writes the first part of a manifest: what a captured program takes and gives, in the source's words."""

from compressor.model import Model
from worker.errors import InvalidRequest
from worker.expression import rename
from worker.manifest import (
    FORMAT,
    PROGRAM,
    AxisEntry,
    FileEntry,
    Manifest,
    ProfileEntry,
    RecipeEntry,
    TensorEntry,
)
from worker.program import DATATYPES, Program


def describe(model: Model, program: Program, recipe: RecipeEntry, handler: str | None) -> Manifest:
    """A manifest without cuts, whose files are filled in when the artifact is written.

    Raises:
        InvalidRequest: not as many names as outputs, or a tensor that the protocol has no name for.
    """
    axes: dict[str, AxisEntry] = {}
    names: dict[str, str] = {}
    inputs = []
    for value, item in zip(program.inputs, model.inputs, strict=True):
        shape: list[int | str] = []
        for size, axis in zip(program.values[value].shape, item.axes, strict=True):
            if isinstance(size, int):
                shape.append(size)
            elif axis is None:
                raise InvalidRequest(f"input {item.name!r}: the dimension {size} varies but has no name")
            else:
                names[str(size)] = axis
                minimum, maximum = program.bounds.get(str(size), (1, None))
                axes[axis] = AxisEntry(name=axis, minimum=max(1, minimum), maximum=maximum)
                shape.append(axis)
        inputs.append(_entry(program, value, item.name, tuple(shape), item.pad))
    labels = model.outputs or _default_outputs(len(program.outputs))
    if len(labels) != len(program.outputs):
        raise InvalidRequest(f"{len(labels)} names ({', '.join(labels)}) for {len(program.outputs)} outputs")
    outputs = []
    for value, label in zip(program.outputs, labels, strict=True):
        shape = [size if isinstance(size, int) else rename(size, names) for size in program.values[value].shape]
        outputs.append(_entry(program, value, label, tuple(shape), None))
    return Manifest(
        format=FORMAT,
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        axes=tuple(axes.values()),
        handler=handler,
        recipe=recipe,
        profile=ProfileEntry(sizes={}, device="cpu", seconds=()),
        files={PROGRAM: FileEntry(sha256="0" * 64, bytes=0)},
    )


def _entry(
    program: Program, value: str, name: str, shape: tuple[int | str, ...], pad: bool | int | float | None
) -> TensorEntry:
    dtype = program.values[value].dtype
    if dtype not in DATATYPES:
        raise InvalidRequest(f"{name!r} is {dtype}, which the protocol has no name for; cast it in the module")
    return TensorEntry(name=name, datatype=DATATYPES[dtype], shape=shape, pad=pad)


def _default_outputs(count: int) -> tuple[str, ...]:
    return ("output",) if count == 1 else tuple(f"output_{index}" for index in range(count))
