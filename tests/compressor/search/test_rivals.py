from pathlib import Path

import pytest
import torch

from compressor.evaluation.records import Records
from compressor.model import Input, Model
from compressor.search.finals import EAGER, compare
from compressor.search.objective import read_objective
from compressor.search.rivals import ONNX, tried
from compressor.search.trial import Setting


class Rows(torch.nn.Module):
    """Takes any batch; what tracing makes of it takes the example's only."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.ones(int(x.shape[0]), 4)


class Wide(torch.nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.layer(x)
        return y


def setting_of(module: torch.nn.Module, width: int) -> Setting:
    model = Model(module, (Input("x", torch.zeros(3, width), ("batch", None)),))
    return Setting(
        model, "accuracy", Records({}, "none"), read_objective("latency@5"), key=f"{type(module).__name__} {width}"
    )


def test_whatever_a_rival_raises_is_why_it_is_not_here() -> None:
    assert tried(lambda: 3) == 3
    assert tried(lambda: __import__("no_such_module_at_all")) == "not installed"
    assert tried(lambda: {"name": "onnx"}["version"]) == "KeyError: 'version'"


def test_a_rival_that_takes_the_example_and_no_other_batch_is_left_out_of_the_comparison(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="needs the bench extra: onnxruntime")
    found = compare(setting_of(Rows(), 4), {}, {"5": (torch.zeros(5, 4),)}, tmp_path)
    assert list(found["seconds"]) == [EAGER]
    assert ONNX in found["problems"]
    assert found["problems"][ONNX] != "not installed"


def test_a_rival_made_of_another_model_in_the_same_folder_is_not_taken_for_this_ones(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="needs the bench extra: onnxruntime")
    for width in (4, 8):
        found = compare(setting_of(Wide(width), width), {}, {"5": (torch.zeros(5, width),)}, tmp_path)
        assert not found["problems"]
        assert set(found["seconds"]) == {EAGER, ONNX}
