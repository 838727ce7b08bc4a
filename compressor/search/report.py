"""What a search found, as it is written to report.json."""

import json
import math
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

FORMAT: Final = 1


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure with its interval, in the evaluation's unit. method: how the interval was found."""

    value: float
    low: float
    high: float
    level: float
    method: str


@dataclass(frozen=True, slots=True)
class PointRow:
    """One recipe that was tried as a whole.

    drop: on calibration data. held_out: the drop on held-out data, where asked. seconds: at the objective's sizes.
    front: whether nothing tried is both faster (or smaller) and more accurate.
    """

    name: str
    drop: Figure
    held_out: Figure | None
    seconds: float | None
    bytes: int
    front: bool
    verdict: str
    treatments: Mapping[str, str]
    recipe: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class RivalRow:
    """One way to run the model. seconds: by batch. figure, drop: on held-out data."""

    name: str
    seconds: Mapping[str, float]
    figure: Figure | None = None
    drop: Figure | None = None
    bytes: int | None = None
    resident_bytes: int | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class LayerTold:
    """One treatment of one group of layers; see `compressor.search.mixing.LayerRow`."""

    group: str
    treatment: str
    distance: float | None
    drop: float | None
    alone_seconds: float | None
    gain_seconds: float | None
    saved_bytes: int
    chosen: bool
    problem: str


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that a search has to say. Seconds are of one thread; figures are in `unit`.

    stages: that artifacts were judged and timed in, one after the other.

    found: whether something that keeps the budget beats the uncompressed model; else that is what `artifact` is.
    drop: how much is lost on held-out data; its `high` is within `allowed`.
    left_out: by treatment, why the whole model in it was not judged.
    """

    source: str
    artifact: str
    found: bool
    reason: str
    evaluation: str
    unit: str
    higher_is_better: bool
    budget: str
    allowed: float
    objective: str
    device: str
    stages: int
    seed: int
    calibration: str
    calibration_records: int
    held_out: str
    held_out_records: int
    looks: int
    baseline: Figure
    figure: Figure
    drop: Figure
    recipe: Mapping[str, Any] | None
    points: list[PointRow] = field(default_factory=list)
    left_out: Mapping[str, str] = field(default_factory=dict)
    layers: list[LayerTold] = field(default_factory=list)
    rivals: list[RivalRow] = field(default_factory=list)
    trials: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)
    machine: Mapping[str, str] = field(default_factory=dict)
    format: int = FORMAT

    def as_json(self) -> dict[str, Any]:
        """Numbers that are not finite become null: JSON has none."""
        document: dict[str, Any] = _finite(asdict(self))
        return document


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


def write_whole(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    handle, name = tempfile.mkstemp(prefix=".writing-", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_json(path: Path, report: Report) -> None:
    write_whole(path, json.dumps(report.as_json(), indent=1, allow_nan=False) + "\n")
