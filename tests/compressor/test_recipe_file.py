import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from compressor.model import Input, Model
from compressor.package import package
from compressor.quantization.formats import Binary, Int8Dynamic
from compressor.quantization.int8_static import Int8Static
from compressor.recipe import Recipe, find_packaged
from compressor.recipe_file import RecipeFile, read_calibration, read_recipe, read_training, recipe_of
from compressor.training.training_data import Rows
from compressor.training.training_steps import FineTune
from tests import models
from worker.artifact import load_artifact
from worker.errors import InvalidRequest


def images() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Calibration of `models.attention`, as a function of the user's."""
    for seed in range(2):
        ids = torch.randint(1, 50, (4, 6 + seed), generator=torch.Generator().manual_seed(seed))
        yield ids, torch.ones_like(ids)


def wrong() -> list[torch.Tensor]:
    return [torch.zeros(2, 3)]


def empty() -> list[torch.Tensor]:
    return []


HERE = "tests.compressor.test_recipe_file"


def _ids(path: Path, rows: int = 40, **more: Any) -> Path:
    ids = np.random.default_rng(0).integers(1, 50, (rows, 7))
    np.savez(path, ids=ids, mask=np.ones_like(ids), **more)
    return path


def test_a_recipe_is_read_with_all_that_it_says(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"seed: 3\ncalibration: {HERE}:images\nsteps:\n- {{kind: binary, layers: [embedding]}}\n- kind: int8_static\n"
    )
    recipe = read_recipe(path)
    assert recipe == RecipeFile(
        steps=(Binary(layers=("embedding",)), Int8Static()), seed=3, calibration=f"{HERE}:images"
    )
    context = recipe.context(models.attention())
    assert context.seed == 3
    assert [len(batch) for batch in context.calibration] == [2, 2]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("stepps: []", "no such key 'stepps'; the nearest is \"steps\""),
        ("seed: 1", "steps: missing"),
        ("steps: []", "steps: Tuple should have at least 1 item"),
        ("steps: [{kind: int9_dynamic}]", "steps.0.kind 'int9_dynamic' is unknown; the nearest is \"int8_dynamic\""),
        ("steps: [{kind: bf16}]\nseed: -1", "seed: Input should be greater than or equal to 0, not -1"),
        ("steps: [{kind: bf16}]\ncalibration: [a]", "calibration: Input should be a valid string"),
        ("- kind: bf16", "expected a mapping with `steps`, not a list"),
        ("", "expected a mapping with `steps`, not nothing"),
        ("steps: [", "cannot be read"),
        ("steps: !!python/object/apply:os.getcwd []", "cannot be read"),
    ],
)
def test_what_is_wrong_in_a_recipe_is_told(text: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(InvalidRequest) as raised:
        read_recipe(path)
    assert told in str(raised.value)
    assert "recipe.yaml" in str(raised.value)


def test_a_recipe_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="No such file"):
        read_recipe(tmp_path / "none.yaml")
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(InvalidRequest, match="not the manifest of a compressed artifact"):
        read_recipe(tmp_path / "manifest.json")


def test_a_recipe_is_replayed_from_its_manifest_to_the_same_bytes(tmp_path: Path) -> None:
    _ids(tmp_path / "ids.npz")
    recipe = RecipeFile(
        steps=(
            Int8Dynamic(layers=("qkv",)),
            Binary(layers=("embedding",)),
            Int8Static(layers=("*", "!qkv", "!embedding")),
        ),
        seed=7,
        calibration=str(tmp_path / "ids.npz"),
        calibration_rows=33,
    )
    folder = package(models.attention(), tmp_path / "first", compression=recipe, runtime="eager")
    again = read_recipe(folder / "manifest.json")
    assert again == recipe
    first = load_artifact(folder).manifest
    second = load_artifact(
        package(models.attention(), tmp_path / "second", compression=again, runtime="eager")
    ).manifest
    assert first.files["program.pt2"].sha256 == second.files["program.pt2"].sha256
    assert first.recipe == second.recipe
    made = first.recipe.compression
    assert made is not None
    assert [[change.layer for change in changes] for changes in made.changes] == [
        ["qkv"],
        ["embedding"],
        ["out", "up", "down"],
    ]


def blocks_of_zeros() -> Model:
    """Two linear layers, of which one gains by being multiplied as blocks and the other does not."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 512))
    for place, high, wide, left in ((0, 64, 16, 8), (2, 2, 2, 2)):
        kept = (torch.rand(512 // high, 512 // wide) < 1 / left).repeat_interleave(high, 0).repeat_interleave(wide, 1)
        module.get_parameter(f"{place}.weight").data *= kept
    return Model(module, (Input("x", torch.randn(2, 512), ("batch", None)),))


def test_what_was_measured_is_in_the_manifest_so_that_its_replay_measures_nothing(tmp_path: Path) -> None:
    first = {"kind": "sparse", "layout": "bsr", "block": [64, 16], "layers": ["0"]}
    second = {"kind": "sparse", "layout": "bsr", "block": [2, 2], "layers": ["2"], "rows": 256}
    recipe = recipe_of({"steps": [first, second]})
    folder = package(blocks_of_zeros(), tmp_path / "a", runtime="eager", compression=recipe)
    again = read_recipe(folder / "manifest.json")
    assert [step.model_dump()["as_blocks"] for step in again.steps] == [("0",), ()]
    turned = [
        again.steps[0].model_copy(update={"as_blocks": ()}),
        again.steps[1].model_copy(update={"as_blocks": ("2",)}),
    ]
    for name, steps in {"b": again.steps, "c": turned}.items():
        package(blocks_of_zeros(), tmp_path / name, runtime="eager", compression=RecipeFile(steps=tuple(steps)))
    programs = [(tmp_path / name / "1" / "program.pt2").read_bytes() for name in "abc"]
    assert programs[0] == programs[1] != programs[2]
    replayed = read_recipe(tmp_path / "c" / "1" / "manifest.json").steps
    assert [step.model_dump()["as_blocks"] for step in replayed] == [(), ("2",)]


def test_a_replay_of_int8_with_scales_gives_the_same_files(tmp_path: Path) -> None:
    data = tmp_path / "images.npz"
    np.savez(data, image=np.random.default_rng(0).standard_normal((24, 3, 8, 8)).astype(np.float32))

    def net() -> Model:
        torch.manual_seed(0)
        module = nn.Sequential(
            nn.Conv2d(3, 8, 3),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(128, 4),
        )
        return Model(module, (Input("image", torch.randn(2, 3, 8, 8), ("batch", None, None, None)),))

    recipe = recipe_of({"steps": [{"kind": "int8_static"}], "calibration": str(data)})
    folders = [package(net(), tmp_path / "a", runtime="eager", compression=recipe)]
    folders.append(
        package(net(), tmp_path / "b", runtime="eager", compression=read_recipe(folders[0] / "manifest.json"))
    )
    names = [
        sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()) for folder in folders
    ]
    assert names[0] == names[1]
    manifests = [json.loads((folder / "manifest.json").read_text()) for folder in folders]
    for manifest in manifests:
        del manifest["profile"], manifest["cuts"]  # measured, and decided by what was
    assert manifests[0] == manifests[1]
    for name in set(names[0]) - {"manifest.json"}:
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes(), name


def test_a_manifest_of_before_activation_bits_is_replayed_with_eight(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps({"recipe": {"compression": {"steps": [{"kind": "int8_static"}], "seed": 1}}}))
    assert read_recipe(path).steps == (Int8Static(activation_bits=8),)


def test_the_same_recipe_is_found_and_another_is_not(tmp_path: Path) -> None:
    recipe = RecipeFile(steps=(Int8Dynamic(layers=("qkv",)),))
    out = tmp_path / "m"
    folder = package(models.attention(), out, compression=recipe, runtime="eager")
    asked = Recipe(models.attention(), runtime="eager", compression=recipe)
    assert find_packaged(out, asked) == folder
    for other in (recipe.model_copy(update={"seed": 1}), RecipeFile(steps=(Int8Dynamic(),)), None):
        assert find_packaged(out, Recipe(models.attention(), runtime="eager", compression=other)) is None
    shutil.rmtree(folder)
    short = package(models.attention(), out, quantize="int8", runtime="eager")
    assert (
        find_packaged(out, Recipe(models.attention(), runtime="eager", compression=RecipeFile(steps=(Int8Dynamic(),))))
        == short
    )


def test_another_teacher_in_the_same_file_is_another_recipe(tmp_path: Path) -> None:
    path = tmp_path / "teacher.pt2"
    asked = Recipe(models.attention(), compression=RecipeFile(steps=(Int8Dynamic(),), teacher=str(path)))
    path.write_bytes(b"one")
    key = asked.key()
    assert asked.key() == key
    path.write_bytes(b"another")
    assert asked.key() != key


@pytest.mark.parametrize("place", ["calibration", "training"])
def test_a_function_whose_code_changed_gives_other_data(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    name = f"data_for_{place}"
    code = tmp_path / f"{name}.py"
    code.write_text("def batches():\n    return [1]\n")
    recipe = RecipeFile.model_validate({"steps": [{"kind": "int8_dynamic"}], place: f"{name}:batches"})
    asked = Recipe(models.attention(), compression=recipe)
    key = asked.key()
    assert asked.key() == key
    assert not asked.knows_its_data
    code.write_text("def batches():\n    return [1, 2, 3]\n")
    assert asked.key() != key


def test_one_way_to_say_what_is_compressed(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="give one of the two"):
        package(models.attention(), tmp_path / "m", quantize="int8", compression=RecipeFile(steps=(Int8Dynamic(),)))
    assert not list(tmp_path.iterdir())


def test_a_recipe_that_cannot_work_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="there is no calibration data"):
        package(models.attention(), tmp_path / "m", compression=RecipeFile(steps=(Int8Static(),)))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("source", "told"),
    [
        (f"{HERE}:wrong", "batch 0 has 1 tensors; the model takes 2"),
        (f"{HERE}:empty", "it is empty; give at least one batch"),
        (f"{HERE}:none", "has no attribute 'none'; expected module:function, or a data file"),
        ("nowhere.npz", "cannot be read"),
        ("nowhere", "expected .csv, .tsv, .jsonl or .npz"),
    ],
)
def test_calibration_that_does_not_fit_is_told(source: str, told: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        read_calibration(source, models.attention(), 512)
    assert told in str(raised.value)


@pytest.mark.parametrize(
    ("column", "told"),
    [
        (np.zeros((5, 4), np.float32), "the input 'left' is [5, 4]"),
        (np.zeros((5, 3, 9), np.float32), "the input 'left' is [5, 3, 9]; expected ['batch', 'length', 8]"),
        (np.full((5, 3, 8), np.inf, np.float32), "the input 'left' holds what is not a finite number"),
    ],
)
def test_a_data_file_that_does_not_fit_is_told(column: Any, told: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", left=column, right=np.zeros((5, 3, 8), np.float32))
    with pytest.raises(InvalidRequest) as raised:
        read_calibration(str(tmp_path / "data.npz"), models.toy(), 512)
    assert told in str(raised.value) or "'left' has" in str(raised.value)


def test_a_data_file_calibrates_by_its_first_rows_and_trains_by_its_labels(tmp_path: Path) -> None:
    path = str(_ids(tmp_path / "ids.npz", label=np.arange(40) % 2))
    calibration = read_calibration(path, models.attention(), 35)
    assert [batch[0].shape for batch in calibration] == [(32, 7), (3, 7)]
    training = read_training(path, models.attention(), 0)
    assert isinstance(training, Rows)
    assert (training.inputs[0].shape, training.targets.tolist()) == ((40, 7), [0, 1] * 20)
    with pytest.raises(InvalidRequest, match="no column 'label'"):
        read_training(str(_ids(tmp_path / "none.npz")), models.attention(), 0)


def test_a_label_that_is_no_classs_number_is_told_with_its_record(tmp_path: Path) -> None:
    path = str(_ids(tmp_path / "ids.npz", label=np.arange(40) / 2))
    with pytest.raises(InvalidRequest, match=r"column 'label': 0\.5 in record 1; expected the number of a class"):
        read_training(path, models.attention(), 0)


def kept_as_bytes() -> Rows:
    def augment(inputs: tuple[torch.Tensor, ...], _: torch.Generator) -> tuple[torch.Tensor, ...]:
        return tuple(tensor.float() for tensor in inputs)

    side = torch.ones(4, 3, 8, dtype=torch.uint8)
    return Rows((side, side), torch.zeros(4, dtype=torch.int64), augment=augment)


def kept_too_short() -> Rows:
    return replace(kept_as_bytes(), augment=lambda inputs, _: tuple(tensor.float()[..., :5] for tensor in inputs))


def test_rows_that_are_augmented_are_checked_as_the_model_gets_them() -> None:
    given = read_training(f"{HERE}:kept_as_bytes", models.toy(), 0)
    assert isinstance(given, Rows)
    assert given.inputs[0].dtype == torch.uint8
    with pytest.raises(InvalidRequest, match=r"the input 'left' is \[4, 3, 5\]; expected \['batch', 'length', 8\]"):
        read_training(f"{HERE}:kept_too_short", models.toy(), 0)


def test_training_data_that_were_read_already_are_not_read_again() -> None:
    rows = Rows((torch.ones(2, 5, dtype=torch.int64), torch.ones(2, 5, dtype=torch.int64)), torch.zeros(2))
    recipe = RecipeFile(steps=(FineTune(),), training="no-file.npz")
    assert recipe.context(models.attention(), rows).training is rows
    assert RecipeFile(steps=(Int8Dynamic(),)).context(models.attention(), rows).training is None


def test_steps_may_be_given_as_they_are_or_as_they_are_written() -> None:
    assert recipe_of({"steps": [{"kind": "int8_dynamic"}]}) == RecipeFile(steps=(Int8Dynamic(),))
