"""From a source to an artifact that a worker can load."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from compressor.package import compile_artifact, package
from compressor.packaging.compile import INT8_CALLS, calls, compiler_problem
from compressor.packaging.stage_runtime import INT8_TOLERANCE
from compressor.quantization.quantize import int8_layers
from compressor.recipe import Recipe, find_packaged
from tests import models
from worker.artifact import Artifact, load_artifact, versions
from worker.cut import cut
from worker.errors import InvalidRequest, Unsupported
from worker.manifest import MANIFEST
from worker.shard import load_program, load_shard

ROOT = Path(__file__).parents[2]


def test_each_stage_records_what_was_measured_and_why_it_was_chosen(compiled: Artifact) -> None:
    (entry,) = compiled.manifest.cuts
    assert len(entry.stages) == 2
    for stage in entry.stages:
        eager, *tried = stage.figures
        assert eager.runtime == "eager"
        assert tried
        assert {label.split("=")[0] for label in eager.seconds} == {"batch"}
        correct = [figure for figure in stage.figures if figure.correct]
        assert all(figure.error <= INT8_TOLERANCE for figure in correct)
        assert bool(stage.compiled) == (stage.runtime == "aotinductor")
        fastest = min(correct, key=lambda figure: sum(figure.seconds.values()))
        slowest = max(correct, key=lambda figure: sum(figure.seconds.values()))
        if sum(slowest.seconds.values()) > 2 * sum(fastest.seconds.values()):
            assert stage.runtime == fastest.runtime


def test_int8_layers_are_int8_in_the_compiled_code(compiled: Artifact) -> None:
    program = load_program(compiled)
    (entry,) = compiled.manifest.cuts
    for stage, part in zip(entry.stages, cut(program, entry.points), strict=True):
        for one in stage.compiled:
            assert calls(compiled.folder / one.file, INT8_CALLS) == bool(int8_layers(part))
            assert not calls(compiled.folder / one.file, [b"qlinear"]), "which is slow on signed input"


def test_the_steps_profile_covers_the_program(compiled: Artifact) -> None:
    profile = compiled.manifest.profile
    assert len(profile.seconds) == len(load_program(compiled).steps)
    assert set(profile.sizes) == {"batch", "length"}


def test_what_is_packaged_already_is_found(tmp_path: Path) -> None:
    recipe = Recipe("tests.models:chain", None, (1, 2), "cpu", "eager")
    out = tmp_path / "chain"
    assert find_packaged(out, recipe) is None
    folder = package(recipe.source, out, stages=recipe.stages, runtime="eager")
    assert find_packaged(out, recipe) == folder
    newer = package(recipe.source, out, stages=recipe.stages, runtime="eager")
    assert (newer.name, find_packaged(out, recipe)) == ("2", newer)
    (newer / MANIFEST).write_text("damaged")
    assert find_packaged(out, recipe) == folder


@pytest.mark.parametrize(
    "other",
    [
        {"stages": (1,)},
        {"handler": "worker.text:TextEmbedding"},
        {"source": "tests.models:toy"},
        {"runtime": "fastest"},
        {"quantize": "int8"},
    ],
)
def test_another_recipe_is_another_artifact(tmp_path: Path, other: dict[str, object]) -> None:
    recipe = Recipe("tests.models:chain", None, (1, 2), "cpu", "eager")
    out = tmp_path / "chain"
    package(recipe.source, out, stages=recipe.stages, runtime="eager")
    assert find_packaged(out, replace(recipe, **other)) is None  # type: ignore[arg-type]


def test_other_weights_are_another_artifact(tmp_path: Path) -> None:
    model = models.toy()
    key = Recipe(model).key()
    assert Recipe(models.toy()).key() == key
    with torch.no_grad():
        next(iter(model.module.parameters()))[0, 0] += 1e-3
    assert Recipe(model).key() != key


def test_a_compiled_artifact_is_found_where_it_was_compiled(compiled: Artifact, tmp_path: Path) -> None:
    recipe = Recipe(models.attention(), "int8", (2,))
    assert find_packaged(compiled.folder.parent, recipe) == compiled.folder
    out = tmp_path / "attention"
    folder = Path(shutil.copytree(compiled.folder, out / "1"))
    document = json.loads((folder / MANIFEST).read_text())
    for stage in document["cuts"][0]["stages"]:
        for entry in stage["compiled"]:
            entry["instruction_set"] = "elsewhere"
    (folder / MANIFEST).write_text(json.dumps(document))
    if any(stage["compiled"] for stage in document["cuts"][0]["stages"]):
        assert find_packaged(out, recipe) is None, "it is packaged again for this machine"


def test_an_uncompiled_artifact_is_compiled_as_the_next_version(tmp_path: Path, machine_key: Path) -> None:
    problem = compiler_problem()
    if problem:
        pytest.skip(problem)
    out = tmp_path / "chain"
    first = package(models.chain(), out, stages=(1,), runtime="eager")
    told: list[str] = []
    second = compile_artifact(first, key=machine_key, progress=told.append)
    assert versions(out) == (1, 2)
    assert told == ["compiling stage 1 of 1"]
    artifact = load_artifact(second)
    shard = load_shard(artifact, stage=0, stages=1, key=machine_key)
    assert shard.note == ""
    (found,) = shard.run((torch.ones(3, 4),))
    assert torch.equal(found, torch.full((3, 4), 31.0))
    assert artifact.manifest.files["program.pt2"] == load_artifact(first).manifest.files["program.pt2"]


def test_without_a_compiler_it_is_packaged_uncompiled_and_said_once(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from compressor.package import package\n"
        "package('tests.models:chain', Path(sys.argv[1]) / 'chain', key=Path(sys.argv[1]) / 'key', progress=print)\n"
    )
    environment = {**os.environ, "CXX": "/nonexistent/c++", "PATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        cwd=ROOT, env=environment, timeout=120, check=True, capture_output=True, text=True,
    )  # fmt: skip
    told = [line for line in done.stdout.splitlines() if "compiler" in line]
    assert len(told) == 1
    assert "uncompiled" in told[0]
    shard = load_shard(load_artifact(tmp_path / "chain" / "1"), stage=0, stages=1)
    assert shard.runtime == "eager"
    assert "nothing is compiled" in shard.note


def test_too_many_stages_are_refused_and_leave_nothing(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="cannot be cut into 99 stages"):
        package(models.chain(), tmp_path / "chain", stages=(99,), runtime="eager")
    assert not (tmp_path / "chain").exists()


def test_a_device_that_is_not_there_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="device 'cuda:7'"):
        package(models.chain(), tmp_path / "chain", device="cuda:7")
    assert not (tmp_path / "chain").exists()


def test_progress_tells_of_each_long_step(tmp_path: Path) -> None:
    told: list[str] = []
    package(models.attention(), tmp_path / "a", quantize="int8", runtime="eager", progress=told.append)
    assert told == ["loading _Attention", "step 1 of 1: int8_dynamic", "capturing the program", "measuring each step"]
