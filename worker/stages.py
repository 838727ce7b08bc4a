"""Describes a program's stages in the artifact's own words: its names of tensors and axes."""

from collections.abc import Mapping, Sequence

from worker.artifact import ArtifactError
from worker.expression import Size, rename
from worker.manifest import Manifest, StageEntry, TensorEntry
from worker.program import DATATYPES, Program


def axis_names(program: Program, manifest: Manifest) -> dict[str, str]:
    """The axis that each symbol of the program's inputs stands for.

    Raises:
        ArtifactError: the program does not take and give what the manifest says.
    """
    names: dict[str, str] = {}
    _match(program, program.inputs, manifest.inputs, names, "input")
    _match(program, program.outputs, manifest.outputs, names, "output")
    return names


def _match(
    program: Program, values: Sequence[str], entries: Sequence[TensorEntry], names: dict[str, str], what: str
) -> None:
    if len(values) != len(entries):
        raise ArtifactError(f"the program has {len(values)} {what}s, the manifest {len(entries)}; package it again")
    for name, entry in zip(values, entries, strict=True):
        value = program.values[name]
        if what == "input":
            for size, wanted in zip(value.shape, entry.shape, strict=False):
                if not isinstance(size, int) and size.is_Symbol and isinstance(wanted, str):
                    names.setdefault(size.name, wanted)
        found = tuple(_renamed(size, names) for size in value.shape)
        if found != entry.shape or DATATYPES.get(value.dtype) != entry.datatype:
            raise ArtifactError(
                f"the program's {what} {entry.name!r} is {DATATYPES.get(value.dtype)} {list(found)}, "
                f"the manifest says {entry.datatype} {list(entry.shape)}; package it again"
            )


def _renamed(size: Size, names: Mapping[str, str]) -> int | str:
    if isinstance(size, int):
        return size
    return rename(size, {**{str(free): str(free) for free in size.free_symbols}, **names})


def describe_stages(
    program: Program,
    stages: Sequence[Program],
    manifest: Manifest,
    pads: Mapping[str, bool | int | float] | None = None,
) -> tuple[StageEntry, ...]:
    """What each stage takes and gives. Original inputs keep their names and padding; other tensors that travel are
    padded with `pads` by their name, or not at all.
    """
    axes = axis_names(program, manifest)
    originals = dict(zip(program.inputs, manifest.inputs, strict=True))
    taken = {entry.name for entry in manifest.inputs}

    def entry(value: str, stage: Program) -> TensorEntry:
        if value in originals:
            return originals[value]
        known = stage.values[value]
        shape = tuple(_renamed(size, axes) for size in known.shape)
        name = value if value not in taken else f"{value}_"
        return TensorEntry(name=name, datatype=DATATYPES[known.dtype], shape=shape, pad=(pads or {}).get(value))

    entries = []
    for index, stage in enumerate(stages):
        inputs = tuple(entry(value, stage) for value in stage.inputs)
        outputs = tuple(entry(value, stage) for value in stage.outputs)
        if index == len(stages) - 1:
            outputs = manifest.outputs
        places = {value: place for place, value in enumerate(stage.inputs)}
        passed = tuple(places.get(value) for value in stage.outputs)
        entries.append(StageEntry(inputs=inputs, outputs=outputs, passed=passed))
    return tuple(entries)
