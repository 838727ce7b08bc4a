"""What is chosen where compiling fails, or gives something else: the stage as it is, and the reason."""

import stat
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._inductor import config

from compressor.capture import capture
from compressor.model import Input, Model
from compressor.packaging.compile import compiler_problem
from compressor.packaging.stage_runtime import choose_runtime
from worker.program import Program


@pytest.fixture
def stage(tmp_path: Path) -> Program:
    """x FP32 [batch, 8] → [batch, 8]."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))
    return capture(Model(module, (Input("x", torch.randn(2, 8), ("batch", None)),)), tmp_path / "program.pt2")


INPUTS = {"batch=4": (torch.randn(4, 8),)}


def _failing(words: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A compiler that says so and ends."""
    if problem := compiler_problem():
        pytest.skip(problem)
    broken = folder / "g++"
    broken.write_text(f'#!/bin/sh\n[ "$1" = --version ] && exec g++ --version\necho "{words}" >&2\nexit 1\n')
    broken.chmod(broken.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(folder / "cache"))  # nothing that was compiled before
    return str(broken)


def test_a_compiler_that_fails_leaves_the_uncompiled_stage_and_its_words(
    stage: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = _failing("internal compiler error", tmp_path, monkeypatch)
    packages = tmp_path / "packages"
    packages.mkdir()
    with config.patch({"cpp.cxx": (broken,)}):
        chosen = choose_runtime(stage, INPUTS, packages, "stage", device="cpu")
    assert chosen.package is None
    assert "AOTInductor" in chosen.problem
    assert [(figure.runtime, list(figure.seconds)) for figure in chosen.figures] == [("eager", ["batch=4"])]
    assert list(packages.iterdir()) == []


def test_a_compiler_that_finds_no_room_is_no_stage_that_cannot_be_compiled(
    stage: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = _failing("fatal error: error writing to /tmp/cc.s: No space left on device", tmp_path, monkeypatch)
    with config.patch({"cpp.cxx": (broken,)}), pytest.raises(OSError, match=r"No space left on device: '.*/cache'"):
        choose_runtime(stage, INPUTS, tmp_path, "stage", device="cpu")


def test_a_package_that_finds_no_room_is_no_stage_that_cannot_be_compiled(stage: Program, tmp_path: Path) -> None:
    if problem := compiler_problem():
        pytest.skip(problem)
    (tmp_path / "stage.pt2").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device"):
        choose_runtime(stage, INPUTS, tmp_path, "stage", device="cpu")


def test_a_compiled_stage_that_gives_something_else_is_not_taken(stage: Program, tmp_path: Path) -> None:
    if problem := compiler_problem():
        pytest.skip(problem)
    by_chance = torch.ops.aten.rand_like.default
    steps = tuple(
        replace(step, operator=by_chance) if step.operator is torch.ops.aten.relu.default else step
        for step in stage.steps
    )
    assert steps != stage.steps
    packages = tmp_path / "packages"
    packages.mkdir()
    chosen = choose_runtime(replace(stage, steps=steps), INPUTS, packages, "stage", device="cpu")
    eager, *compiled = chosen.figures
    assert chosen.package is None
    assert eager.seconds
    assert compiled
    assert all(not figure.correct and figure.error > 1e-3 and not figure.seconds for figure in compiled)
    assert list(packages.iterdir()) == []
