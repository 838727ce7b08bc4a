from pathlib import Path

import pytest
import torch
from torch import nn

from compressor.capture import capture
from compressor.model import Input, Model
from compressor.quantization.formats import Fp8, Int8Dynamic
from compressor.step import Context
from tests import models
from worker.gpu import cannot_run
from worker.nouns import Axis
from worker.program import Program


def int8(folder: Path, target: str, *, width: int = 16, least: int = 1) -> Program:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(width, 24), nn.ReLU(), nn.Linear(24, width))
    example = torch.randn(least + 2, width)
    model = Model(module, (Input("x", example, ("batch", None)),), axes=(Axis("batch", least, 64),))
    Int8Dynamic().apply_(module, Context.of(model, target=target))
    return capture(model, folder / "program.pt2")


@pytest.mark.parametrize(("width", "least"), [(16, 1), (16, 16), (12, 17)])
def test_int8_in_sizes_that_cuda_does_not_take_is_refused_before_it_runs(
    width: int, least: int, tmp_path: Path
) -> None:
    told = cannot_run(int8(tmp_path, "cpu", width=width, least=least), "cuda:0")
    assert told is not None
    assert f"CUDA multiplies no {least} x {width} by {width} x 24); package it for CUDA" in told


@pytest.mark.parametrize(("target", "least"), [("cuda", 1), ("cpu", 17)])
def test_int8_in_sizes_that_cuda_takes_needs_only_the_device(target: str, least: int, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    assert "int8 is computed on CUDA devices, and there is none here" in str(
        cannot_run(int8(tmp_path, target, least=least), "cuda:0")
    )


def test_fp8_needs_a_device_for_it_and_plain_programs_do_not(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    model = models.attention()
    assert cannot_run(capture(model, tmp_path / "plain.pt2"), "cuda:0") is None
    Fp8().apply_(model.module, Context.of(model, target="cuda"))
    assert "fp8 is computed on CUDA devices" in str(cannot_run(capture(model, tmp_path / "fp8.pt2"), "cuda:0"))
