"""A compression recipe as a file: the steps, the seed, and the data that steps look at or train on.

seed: 0
calibration: images.npz         # or .csv, .tsv, .jsonl, or module:function
steps:
  - kind: prune_channels
    layers: [layer1.*]
  - kind: int8_static
"""

import importlib
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import torch
import yaml
from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, ValidationError, field_validator
from torch import Tensor

from compressor.evaluation.evaluation import batches
from compressor.evaluation.records import Records, read_records
from compressor.model import Model
from compressor.sources.sources import read_source
from compressor.step import Context, Step, Training, nearest
from compressor.steps import as_made, read_steps
from compressor.training.training_data import Rows
from worker.errors import InvalidRequest

_FUNCTION: Final = re.compile(r"([A-Za-z_][\w.]*):([A-Za-z_]\w*)", re.ASCII)
_MOST_BYTES: Final = 16 * 2**20
_LABEL: Final = "label"


class RecipeFile(BaseModel):
    """What a recipe file says. Paths are relative to where the command runs.

    calibration: a data file with a column for each input (or `text`, for models that are served as text), or
        module:function, which returns batches: tuples of tensors, the model's inputs. None: no step needs any.
    calibration_rows: the most rows of a data file that are used, from its beginning.
    training: a data file that has a column `label` besides, or module:function, which returns a
        `compressor.step.Training`. None: no step trains.
    teacher: the source of the model that students learn from; None: the model as it was before the first step.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: Annotated[tuple[SerializeAsAny[Step], ...], Field(min_length=1)]
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    calibration: str | None = None
    calibration_rows: Annotated[int, Field(ge=1)] = 512
    training: str | None = None
    teacher: str | None = None

    @field_validator("steps", mode="before")
    @classmethod
    def _read(cls, value: Any) -> Any:
        if isinstance(value, Sequence) and value and all(isinstance(item, Step) for item in value):
            return tuple(value)
        return read_steps(value)

    def context(self, model: Model, training: Training | None = None) -> Context:
        """What the steps may use: the data, read and checked against the model's inputs. `training`: read already.

        Raises:
            InvalidRequest: data are missing, empty, or not what the model takes.
        """
        if self.training is not None and training is None:
            training = read_training(self.training, model, self.seed)
        return Context.of(
            model,
            calibration=read_calibration(self.calibration, model, self.calibration_rows) if self.calibration else (),
            training=training if self.training is not None else None,
            teacher=read_source(self.teacher).module.eval() if self.teacher else None,
            seed=self.seed,
        )


def read_recipe(path: Path) -> RecipeFile:
    """The recipe in a YAML file, or in the manifest.json of an artifact that was made by one.

    Raises:
        InvalidRequest: it cannot be read, or holds an unknown key, step or value; the message names the place.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise InvalidRequest(f"recipe {str(path)!r}: over {_MOST_BYTES} bytes")
        text = path.read_text(encoding="utf-8")
        document = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise InvalidRequest(f"recipe {str(path)!r} cannot be read: {error}") from error
    if path.suffix == ".json":
        document = _of_manifest(path, document)
    try:
        return recipe_of(document)
    except InvalidRequest as error:
        raise InvalidRequest(f"recipe {str(path)!r}: {error}") from error


def recipe_of(document: Any) -> RecipeFile:
    """The recipe that a mapping describes. Raises InvalidRequest naming every place that is wrong."""
    if not isinstance(document, dict):
        raise InvalidRequest(f"expected a mapping with `steps`, not {_kind(document)}")
    fields = RecipeFile.model_fields
    unknown = [f"no such key {key!r}{nearest(str(key), fields)}" for key in document if key not in fields]
    if unknown:
        raise InvalidRequest("; ".join(unknown))
    if "steps" not in document:
        raise InvalidRequest("steps: missing; name at least one, such as {kind: int8_dynamic}")
    try:
        return RecipeFile.model_validate(document)
    except ValidationError as error:
        told = "; ".join(
            f"{'.'.join(map(str, item['loc']))}: {item['msg']}, not {item['input']!r}"[:300] for item in error.errors()
        )
        raise InvalidRequest(told) from error


def _of_manifest(path: Path, document: Any) -> Any:
    recipe = document.get("recipe") if isinstance(document, dict) else None
    found = recipe.get("compression") if isinstance(recipe, dict) else None
    if not isinstance(found, dict):
        raise InvalidRequest(
            f"recipe {str(path)!r}: not the manifest of a compressed artifact; expected recipe.compression"
        )
    known = {key: found[key] for key in found if key in RecipeFile.model_fields}
    steps = known.get("steps")
    return known | {"steps": [as_made(step) for step in steps]} if isinstance(steps, list) else known


def read_calibration(source: str, model: Model, rows: int) -> tuple[tuple[Tensor, ...], ...]:
    """Batches of the model's inputs.

    Raises:
        InvalidRequest: there are none, or one is not what the model takes.
    """
    found = _called("calibration", source)
    if found is not None:
        made = [batch if isinstance(batch, tuple) else (batch,) for batch in _made("calibration", source, found)]
    else:
        records = read_records(Path(source))
        made = [tensors for _, tensors in batches(model, records[range(min(rows, len(records)))])]
    if not made:
        raise InvalidRequest(f"calibration {source!r}: it is empty; give at least one batch")
    for place, batch in enumerate(made):
        _check_batch(f"calibration {source!r}: batch {place}", batch, model)
    return tuple(made)


def read_training(source: str, model: Model, seed: int) -> Training:
    """What steps train on.

    Raises:
        InvalidRequest: the file lacks a column, or the function returns something else.
    """
    found = _called("training", source)
    if found is not None:
        made = _made("training", source, found)
        if not callable(getattr(made, "batches", None)) or not callable(getattr(made, "loss", None)):
            raise InvalidRequest(f"training {source!r} returned {_kind(made)}; expected a compressor.step.Training")
        if isinstance(made, Rows):  # what is augmented may be kept in another form, such as bytes
            inputs = made.inputs if made.augment is None else _made("training", source, lambda: _first_batch(made))
            _check_batch(f"training {source!r}", inputs, model)
        return made  # type: ignore[no-any-return]
    return training_rows(read_records(Path(source)), model, seed)


def _first_batch(rows: Rows) -> tuple[Tensor, ...]:
    return next(rows.batches(0))[0]


def training_rows(records: Records, model: Model, seed: int) -> Rows:
    """Records with a column for each input, or `text`, and one `label`, as rows to train on.

    Raises:
        InvalidRequest: a column is missing, or is not what the model takes.
    """
    numbers = records.numbers(_LABEL)
    broken = np.flatnonzero(numbers % 1)
    if len(broken):
        raise InvalidRequest(
            f"{records.source}: column {_LABEL!r}: {numbers[broken[0]]:g} in record {broken[0]}; expected the number "
            "of a class, from 0 on"
        )
    labels = torch.from_numpy(numbers).to(torch.int64)
    order = torch.empty(len(records), dtype=torch.int64)
    parts: list[tuple[Tensor, ...]] = []
    first = 0
    for places, tensors in batches(model, records):
        _check_batch(f"training {records.source!r}", tensors, model)
        order[first : first + len(places)] = torch.from_numpy(places)
        first += len(places)
        parts.append(tensors)
    inputs = tuple(_joined([part[index] for part in parts], model, index) for index in range(len(model.inputs)))
    return Rows(inputs, labels[order], seed=seed)


def _joined(parts: Sequence[Tensor], model: Model, index: int) -> Tensor:
    """One tensor of all rows; shorter batches are filled up with the input's padding."""
    item = model.inputs[index]
    longest = [max(sizes) for sizes in zip(*(part.shape[1:] for part in parts), strict=True)]
    if any(list(part.shape[1:]) != longest for part in parts) and item.pad is None:
        raise InvalidRequest(f"training: rows of the input {item.name!r} have different lengths, and it has no padding")

    def filled(part: Tensor) -> Tensor:
        missing = [
            size for have, most in zip(part.shape[:0:-1], longest[::-1], strict=True) for size in (0, most - have)
        ]
        return torch.nn.functional.pad(part, missing, value=item.pad) if any(missing) else part

    return torch.cat([filled(part) for part in parts])


def _made(what: str, source: str, function: Callable[[], Any]) -> Any:
    """What the user's function gives. Raises InvalidRequest: it fails."""
    try:
        return function()
    except Exception as error:
        raise InvalidRequest(f"{what} {source!r} failed: {type(error).__name__}: {error}") from error


def _called(what: str, source: str) -> Callable[[], Any] | None:
    match = _FUNCTION.fullmatch(source)
    if match is None:
        return None
    try:
        found: Callable[[], Any] = getattr(importlib.import_module(match[1]), match[2])
    except (ImportError, AttributeError) as error:
        raise InvalidRequest(f"{what} {source!r}: {error}; expected module:function, or a data file") from error
    return found


def _check_batch(place: str, batch: tuple[Tensor, ...], model: Model) -> None:
    if len(batch) != len(model.inputs):
        raise InvalidRequest(f"{place} has {len(batch)} tensors; the model takes {len(model.inputs)}")
    for tensor, item in zip(batch, model.inputs, strict=True):
        if not isinstance(tensor, Tensor) or tensor.dtype != item.example.dtype:
            came = tensor.dtype if isinstance(tensor, Tensor) else _kind(tensor)
            raise InvalidRequest(f"{place}: the input {item.name!r} is {came}; expected {item.example.dtype}")
        sizes = zip(tensor.shape, item.example.shape, item.axes, strict=False)
        if tensor.dim() != item.example.dim() or any(axis is None and a != b for a, b, axis in sizes):
            expected = [axis or size for axis, size in zip(item.axes, item.example.shape, strict=True)]
            raise InvalidRequest(f"{place}: the input {item.name!r} is {list(tensor.shape)}; expected {expected}")
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise InvalidRequest(f"{place}: the input {item.name!r} holds what is not a finite number")


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"
