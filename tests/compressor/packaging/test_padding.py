from pathlib import Path

import pytest
import torch

from compressor.capture import capture
from compressor.model import Input, Model
from compressor.package import package
from compressor.packaging.padding import padding_error, two_requests
from tests import models
from worker.artifact import load_artifact
from worker.cut import cut
from worker.errors import InvalidRequest
from worker.runtime import Eager


class Mean(torch.nn.Module):
    """Counts the padding as if it were data."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(1)


def test_padding_that_changes_answers_is_refused(tmp_path: Path) -> None:
    model = Model(Mean(), (Input("x", torch.randn(2, 3, 4), ("batch", "length", None), pad=0.0),))
    with pytest.raises(InvalidRequest, match=r"padding 'x' with 0\.0 changes the answers"):
        package(model, tmp_path / "mean", runtime="eager")


def test_without_a_pad_value_the_same_model_is_packaged(tmp_path: Path) -> None:
    model = Model(Mean(), (Input("x", torch.randn(2, 3, 4), ("batch", "length", None)),))
    artifact = load_artifact(package(model, tmp_path / "mean", runtime="eager"))
    assert artifact.manifest.signature.inputs[0].pad is None


def test_tensors_between_stages_are_padded_where_trying_shows_no_harm(tmp_path: Path) -> None:
    artifact = load_artifact(package(models.attention(), tmp_path / "a", runtime="eager", stages=(2, 3)))
    for packaged in artifact.manifest.cuts:
        for stage in packaged.stages[1:]:
            assert all(entry.pad == 0 for entry in stage.inputs if "length" in entry.shape)


class MasksEarly(torch.nn.Module):
    """Knows the padding by its zeros, and only in the beginning: then it is as nothing to the softmax."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        masked = torch.where(x == 0, torch.full_like(x, float("-inf")), x * 3.0)
        return torch.softmax(masked, 1).square().sum(1)


@pytest.mark.parametrize(("pad", "harmless"), [(0.0, False), (float("-inf"), True)])
def test_padding_between_stages_is_tried_with_the_stage_itself(tmp_path: Path, pad: float, harmless: bool) -> None:
    model = Model(MasksEarly(), (Input("x", torch.rand(2, 3) + 0.5, ("batch", "length"), pad=0.0),))
    program = capture(model, tmp_path / "program.pt2")
    softmax = next(i for i, step in enumerate(program.steps) if "softmax" in str(step.operator))
    first, second = cut(program, [softmax])
    names = {
        str(size): axis for size, axis in zip(program.values[program.inputs[0]].shape, ("batch", "length"), strict=True)
    }
    arriving = [
        (Eager(first).run(inputs), sizes) for inputs, sizes in two_requests(program, names, [model.inputs[0].example])
    ]
    error = padding_error(second, names, [pad], arriving)
    assert (error < 1e-5) == harmless
