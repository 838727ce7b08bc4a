"""What `profile.json` says of an artifact: what its steps and stages cost on the devices that it was measured on.

It lies in the version's folder beside `manifest.json`, which does not list it: it is measured again whenever anyone
likes. It names the artifact that it is of, so that it is never believed of another.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from worker.artifact import ArtifactError
from worker.manifest import MANIFEST, PROFILE

FORMAT: Final = 1
MAX_PROFILE_BYTES: Final = 256 * 2**20

LONGEST_ROAD_S: Final = 1.0

_Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Count = Annotated[int, Field(ge=0)]
_Positive = Annotated[int, Field(ge=1)]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Timed(_Entry):
    """Seconds of one run on `rows` rows, with every other axis at `length` (or as near as its bounds allow)."""

    rows: _Positive
    length: _Positive
    seconds: _Seconds


class StepsTimed(_Entry):
    """Seconds of each step of the program, uncompiled, on one thread."""

    rows: _Positive
    length: _Positive
    seconds: tuple[_Seconds, ...]


class Sized(_Entry):
    """Bytes of one row at `length`."""

    length: _Positive
    nbytes: _Count


class CutProfile(_Entry):
    """A place where the program can be cut, before step `point`, and what travels over it."""

    point: _Positive
    tensors: _Count
    row_bytes: Annotated[tuple[Sized, ...], Field(min_length=1)]


class WeightProfile(_Entry):
    """A weight, and the first and last step that use it: a stage that has one of its steps holds it."""

    nbytes: _Count
    steps: Annotated[tuple[int, ...], Field(min_length=1)]


class Living(_Entry):
    """Bytes of all values that live while each step runs, for one row at `length`, weights apart."""

    length: _Positive
    nbytes: tuple[_Count, ...]


class StageProfile(_Entry):
    """Steps from `low` up to `high` as one stage, measured as it is served.

    loaded_bytes: resident memory once loaded, beyond the process's own.
    peak_bytes: the most beyond that while computing the largest size that was measured.
    """

    low: _Count
    high: _Positive
    runtime: Literal["eager", "aotinductor"]
    threads: _Positive
    seconds: Annotated[tuple[Timed, ...], Field(min_length=1)]
    loaded_bytes: _Count
    peak_bytes: _Count

    @property
    def largest(self) -> Timed:
        return max(self.seconds, key=lambda timed: (timed.rows * timed.length, timed.rows))


class DeviceProfile(_Entry):
    """What was measured on one device.

    machine: the processor's or the GPU's own name; cores: of the machine.
    process_bytes: resident memory of a worker's process before it loads a stage.
    crowded: mean seconds of a stage while every core computes one, over the least alone; 1: they do not disturb each
      other.
    road_s: CPU seconds of a small request's way to a worker and back (`compressor.profiling.road_seconds`); None: not
      measured.
    """

    machine: str
    cores: _Positive
    instruction_set: str
    torch: str
    process_bytes: _Count
    crowded: Annotated[float, Field(ge=1, le=1000)] = 1.0
    road_s: Annotated[float, Field(gt=0, le=LONGEST_ROAD_S)] | None = None
    steps: tuple[StepsTimed, ...]
    stages: tuple[StageProfile, ...]

    def stages_of(self, low: int, high: int) -> tuple[StageProfile, ...]:
        """The measurements of this stage, one for each number of threads."""
        return tuple(stage for stage in self.stages if (stage.low, stage.high) == (low, high))


class Profile(_Entry):
    """artifact: the SHA-256 of the manifest that this is of. steps: the operator of each step.

    packaged: the points of each cut that the artifact can be served in as it is.
    paddable: whether requests of different lengths share a batch.
    """

    format: Literal[1]
    artifact: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    steps: Annotated[tuple[str, ...], Field(min_length=1)]
    input_bytes: tuple[Sized, ...]
    output_bytes: tuple[Sized, ...]
    cuts: tuple[CutProfile, ...]
    weights: tuple[WeightProfile, ...]
    living: Annotated[tuple[Living, ...], Field(min_length=1)]
    packaged: tuple[tuple[int, ...], ...]
    paddable: bool
    devices: dict[str, DeviceProfile]

    @model_validator(mode="after")
    def _check(self) -> Self:
        count = len(self.steps)
        points = [cut.point for cut in self.cuts]
        if points != sorted(set(points)) or any(point >= count for point in points):
            raise ValueError(f"cuts: expected ascending points from 1 to {count - 1}, got {points}")
        if any(len(entry.nbytes) != count for entry in self.living):
            raise ValueError(f"living: expected {count} numbers, one for each step")
        if any(not 0 <= step < count for weight in self.weights for step in weight.steps):
            raise ValueError(f"weights: a step outside 0 to {count - 1}")
        if any(not 0 < point < count for cut in self.packaged for point in cut):
            raise ValueError(f"packaged: a point outside 1 to {count - 1}")
        for name, device in self.devices.items():
            if any(len(timed.seconds) != count for timed in device.steps):
                raise ValueError(f"devices.{name}.steps: expected {count} numbers, one for each step")
            if any(not stage.low < stage.high <= count for stage in device.stages):
                raise ValueError(f"devices.{name}.stages: a stage outside steps 0 to {count}")
        return self


def artifact_key(folder: Path) -> str:
    """By which a profile knows its artifact. Raises `ArtifactError` where there is no manifest."""
    try:
        return hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()
    except OSError as error:
        raise ArtifactError(
            f"{folder / MANIFEST}: missing; {folder} is not an artifact (`shardline package` makes one)"
        ) from error


def read_profile(folder: Path) -> Profile:
    """The profile of the artifact in `folder`.

    Raises:
        ArtifactError: it was not profiled, or the file is damaged or of another artifact.
    """
    path = folder / PROFILE
    mend = f"`shardline profile {folder}` measures it"
    key = artifact_key(folder)
    try:
        if path.stat().st_size > MAX_PROFILE_BYTES:
            raise ArtifactError(f"{path}: over {MAX_PROFILE_BYTES} bytes; {mend} again")
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise ArtifactError(f"{folder} is not profiled; {mend}") from error
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read ({error.strerror}); {mend} again") from error
    try:
        document = json.loads(data)
        found = document.get("format") if isinstance(document, dict) else None
        if found != FORMAT:
            raise ArtifactError(f"{path}: format {found!r}; this version of Shardline reads format {FORMAT}: {mend}")
        profile = Profile.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "profile"
        raise ArtifactError(f"{path}: {where}: {first['msg']}; {mend} again") from error
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path}: not JSON ({error}); {mend} again") from error
    if profile.artifact != key:
        raise ArtifactError(f"{path}: of another artifact; {mend}")
    return profile


def write_profile(folder: Path, profile: Profile) -> Path:
    """Writes the profile beside the manifest, at once or not at all."""
    path = folder / PROFILE
    temporary = folder.parent / f".{folder.name}-{PROFILE}.{os.getpid()}.tmp"
    try:
        temporary.write_text(profile.model_dump_json() + "\n", encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be written ({error.strerror})") from error
    finally:
        temporary.unlink(missing_ok=True)
    return path
