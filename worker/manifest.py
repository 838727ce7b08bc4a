"""What `manifest.json` says of an artifact: tensors, axes, recipe, cuts, compiled packages, figures, files' hashes.

Unknown fields are refused: a field that this version does not know may change what the others mean.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from worker.expression import ExpressionError, parse, symbols
from worker.nouns import BYTES, ELEMENT_BYTES, Axis, Signature, TensorSpec

FORMAT: Final = 1
PROGRAM: Final = "program.pt2"
MANIFEST: Final = "manifest.json"
PROFILE: Final = "profile.json"
"""Measured beside an artifact, and no part of it: see `worker/profile.py`."""

AXIS_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_SHA256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_Count = Annotated[int, Field(ge=0)]
_Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TensorEntry(_Entry):
    """One tensor. `pad` fills a shorter request up to the longest of its batch; null: it must not be padded."""

    name: Annotated[str, Field(min_length=1, max_length=255)]
    datatype: str
    shape: tuple[int | str, ...]
    pad: bool | int | float | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.datatype not in ELEMENT_BYTES and self.datatype != BYTES:
            raise ValueError(f"datatype {self.datatype!r} of {self.name!r} is none of the protocol's")
        for size in self.shape:
            if isinstance(size, int):
                if size < 0:
                    raise ValueError(f"shape of {self.name!r}: {size} is negative")
                continue
            try:
                parse(size)
            except ExpressionError as error:
                raise ValueError(f"shape of {self.name!r}: {error}") from error
        return self

    def spec(self) -> TensorSpec:
        return TensorSpec(self.name, self.datatype, self.shape, self.pad)


class AxisEntry(_Entry):
    name: Annotated[str, Field(pattern=AXIS_NAME.pattern)]
    minimum: Annotated[int, Field(ge=0)] = 1
    maximum: int | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.maximum is not None and self.maximum < self.minimum:
            raise ValueError(f"axis {self.name!r}: maximum {self.maximum} is below minimum {self.minimum}")
        return self


class FileEntry(_Entry):
    sha256: _SHA256
    bytes: _Count


class ChangeEntry(_Entry):
    """What a step of compression did to one layer ("" is the whole model): bytes of its weights, as stored."""

    layer: str
    what: str
    before: _Count
    after: _Count


class CompressionEntry(_Entry):
    """The recipe of the compression, as a recipe file has it, and what each step changed."""

    steps: tuple[dict[str, JsonValue], ...]
    seed: _Count = 0
    calibration: str | None = None
    calibration_rows: _Count = 0
    training: str | None = None
    teacher: str | None = None
    changes: tuple[tuple[ChangeEntry, ...], ...] = ()


class RecipeEntry(_Entry):
    """How the artifact was made. `key` is the hash of all that went in: the same key gives the same artifact.

    `cosine`: how near the outputs are to the model's before compression, on the examples.
    """

    source: str
    quantize: Literal["int8"] | None = None
    quantized_layers: _Count = 0
    compression: CompressionEntry | None = None
    cosine: Annotated[float, Field(allow_inf_nan=False)] | None = None
    key: _SHA256
    torch: str


class ProfileEntry(_Entry):
    """Measured seconds of each step of the program, uncompiled, on one thread, at these sizes of the axes."""

    sizes: dict[str, int]
    device: str
    seconds: tuple[_Seconds, ...]


class FigureEntry(_Entry):
    """One candidate, measured while packaging. `error` is the largest relative distance from the uncompiled stage.

    `decoded`: with the weights of sparse layers made dense before it was compiled. `sparse_units`: with 2 of 4 sparse
    weights packed for the GPU's own units.
    """

    runtime: Literal["eager", "aotinductor"]
    frozen: bool = False
    decoded: bool = False
    sparse_units: bool = False
    seconds: dict[str, _Seconds]
    error: Annotated[float, Field(ge=0)] = 0.0
    correct: bool = True


class CompiledEntry(_Entry):
    """A compiled package of a stage: where it runs, and the seal by which the machine that made it knows it again."""

    file: str
    device: Literal["cpu", "cuda"]
    instruction_set: str
    torch: str
    seal: _SHA256


class StageEntry(_Entry):
    """One stage of a cut. `runtime` is the fastest correct one where it was measured.

    `passed`: for each output, the place of the input that it is, null where it is computed.
    """

    inputs: tuple[TensorEntry, ...]
    outputs: tuple[TensorEntry, ...]
    passed: tuple[int | None, ...]
    runtime: Literal["eager", "aotinductor"] = "eager"
    compiled: tuple[CompiledEntry, ...] = ()
    figures: tuple[FigureEntry, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.passed) != len(self.outputs):
            raise ValueError(f"passed has {len(self.passed)} entries for {len(self.outputs)} outputs")
        if any(place is not None and not 0 <= place < len(self.inputs) for place in self.passed):
            raise ValueError(f"passed names an input outside the stage's {len(self.inputs)}")
        return self


class CutEntry(_Entry):
    """One way to cut the program: the steps before which it is cut, and the stages that this gives."""

    points: tuple[int, ...]
    stages: tuple[StageEntry, ...]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.stages) != len(self.points) + 1:
            raise ValueError(
                f"{len(self.points)} cut points make {len(self.points) + 1} stages, not {len(self.stages)}"
            )
        return self


class Manifest(_Entry):
    format: Literal[1]
    inputs: Annotated[tuple[TensorEntry, ...], Field(min_length=1)]
    outputs: Annotated[tuple[TensorEntry, ...], Field(min_length=1)]
    axes: tuple[AxisEntry, ...] = ()
    handler: Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")] | None = None
    recipe: RecipeEntry
    profile: ProfileEntry
    cuts: tuple[CutEntry, ...] = ()
    files: dict[str, FileEntry]

    @model_validator(mode="after")
    def _check(self) -> Self:
        _unique("input", (entry.name for entry in self.inputs))
        _unique("output", (entry.name for entry in self.outputs))
        _unique("axis", (entry.name for entry in self.axes))
        _unique("cut into stages", (str(len(entry.stages)) for entry in self.cuts))
        named = {entry.name for entry in self.axes}
        for entry in (*self.inputs, *self.outputs):
            for size in entry.shape:
                if isinstance(size, str) and not symbols(parse(size)) <= named:
                    raise ValueError(f"shape of {entry.name!r}: {size!r} names an axis that is not in axes")
        if PROGRAM not in self.files:
            raise ValueError(f"files: {PROGRAM!r} is missing")
        for cut in self.cuts:
            for stage in cut.stages:
                for compiled in stage.compiled:
                    if compiled.file not in self.files:
                        raise ValueError(f"files: the compiled package {compiled.file!r} is missing")
        return self

    @property
    def signature(self) -> Signature:
        """What the whole program takes and gives."""
        return signature(self.inputs, self.outputs, self.axes)

    def cut_into(self, stages: int) -> CutEntry | None:
        """The packaged cut with that many stages."""
        return next((entry for entry in self.cuts if len(entry.stages) == stages), None)


def signature(inputs: Sequence[TensorEntry], outputs: Sequence[TensorEntry], axes: Sequence[AxisEntry]) -> Signature:
    return Signature(
        tuple(entry.spec() for entry in inputs),
        tuple(entry.spec() for entry in outputs),
        tuple(Axis(entry.name, entry.minimum, entry.maximum) for entry in axes),
    )


def _unique(what: str, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"two entries for the {what} {name!r}")
        seen.add(name)
