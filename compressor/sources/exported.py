"""An already exported program (.pt2) as a model: read safely, and captured again in the form that artifacts have."""

import hashlib
from pathlib import Path

from compressor.model import Input, Model
from compressor.profiling.measure import example_inputs
from worker.expression import Size
from worker.nouns import BATCH, Axis
from worker.program import Program, ProgramModule
from worker.pt2 import read_program


def read_exported(path: Path) -> Model:
    """Names of inputs are the file's. The first axis that all inputs share is the batch; others are axis_1, axis_2, ….

    Raises:
        ProgramError: the file is damaged, or holds anything but tensors and plain operator calls.
    """
    program = read_program(path, in_place=True)
    names = _axis_names(program)
    sizes = {name: max(2, program.hints.get(name, 3)) for name in names}
    inputs = tuple(
        Input(
            name,
            example,
            tuple(None if isinstance(size, int) else names[_symbol(size)] for size in program.values[name].shape),
        )
        for name, example in zip(program.inputs, example_inputs(program, sizes), strict=True)
    )
    bounds = {name: program.bounds.get(name, (1, None)) for name in names}
    axes = tuple(Axis(axis, max(1, bounds[name][0]), bounds[name][1]) for name, axis in names.items())
    with path.open("rb") as file:
        identity = hashlib.file_digest(file, "sha256").hexdigest()
    return Model(ProgramModule(program), inputs, axes=axes, identity=identity)


def _axis_names(program: Program) -> dict[str, str]:
    names: dict[str, str] = {}
    first = {program.values[name].shape[:1] for name in program.inputs}
    if len(first) == 1 and (shape := first.pop()) and not isinstance(shape[0], int):
        names[_symbol(shape[0])] = BATCH
    for name in program.inputs:
        for size in program.values[name].shape:
            if not isinstance(size, int):
                names.setdefault(_symbol(size), f"axis_{len(names)}")
    return names


def _symbol(size: Size) -> str:
    return str(size)
