"""Calibration data as a file of the model's own inputs, which a recipe can name and a replay reads again."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from compressor.evaluation.evaluation import Evaluation
from compressor.evaluation.records import Records, sample
from compressor.model import Model
from compressor.search.trial import module_run
from worker.artifact import ArtifactError, read_manifest, versions
from worker.errors import InvalidRequest

MOST_ROWS: Final = 512


def write_calibration(path: Path, evaluation: Evaluation, model: Model, records: Records, seed: int) -> None:
    """Writes what the model is given when it answers some of the records: a column for each input (.npz).

    Raises:
        InvalidRequest: inputs have different lengths and are not padded.
    """
    seen: list[tuple[torch.Tensor, ...]] = []
    exact = module_run(model.module, "cpu")

    def watch(inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        seen.append(tuple(inputs))
        return exact(inputs)

    evaluation.answers(watch, model, sample(records, MOST_ROWS // 2, seed))
    columns: dict[str, Any] = {
        item.name: _joined([batch[place] for batch in seen], item.pad, item.name)[:MOST_ROWS].numpy()
        for place, item in enumerate(model.inputs)
    }
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".writing-") as folder:
        partial = Path(folder) / path.name
        np.savez(partial, **columns)
        partial.replace(path)


def remove_unnamed(path: Path, out: Path) -> None:
    """Removes a calibration file, unless a version under `out` has a recipe that names it, or cannot be read."""
    for version in versions(out):
        try:
            made = read_manifest(out / str(version)).recipe.compression
        except ArtifactError:
            return
        if made is not None and made.calibration is not None and Path(made.calibration).name == path.name:
            return
    path.unlink(missing_ok=True)


def _joined(parts: list[torch.Tensor], pad: bool | int | float | None, name: str) -> torch.Tensor:
    longest = [max(sizes) for sizes in zip(*(part.shape[1:] for part in parts), strict=True)]
    if pad is None and any(list(part.shape[1:]) != longest for part in parts):
        raise InvalidRequest(f"calibration: the input {name!r} has different lengths, and it has no padding")
    rows = []
    for part in parts:
        filled = torch.full((part.shape[0], *longest), 0 if pad is None else pad, dtype=part.dtype)
        filled[tuple(slice(size) for size in part.shape)] = part
        rows.append(filled)
    return torch.cat(rows)
