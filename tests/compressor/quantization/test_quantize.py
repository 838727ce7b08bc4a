from pathlib import Path

import pytest
import torch

from compressor.capture import capture
from compressor.model import Input, Model
from compressor.package import package
from compressor.profiling.measure import cosine
from compressor.quantization.formats import Int8Dynamic
from compressor.quantization.quantize import int8_layers
from compressor.step import Context
from tests import models
from worker.artifact import load_artifact
from worker.errors import InvalidRequest
from worker.runtime import Eager


def test_every_linear_layer_becomes_int8(tmp_path: Path) -> None:
    model = models.attention()
    Int8Dynamic().apply_(model.module, Context(inputs=model.inputs))
    program = capture(model, tmp_path / "program.pt2")
    linears = sum(isinstance(layer, torch.nn.Linear) for layer in models.attention().module.modules())
    assert int8_layers(program) == linears == 4
    assert sum(weight.dtype == torch.int8 for weight in program.weights.values()) == linears


def test_an_int8_model_stays_near_to_what_it_was(tmp_path: Path) -> None:
    model = models.attention()
    Int8Dynamic().apply_(model.module, Context(inputs=model.inputs))
    program = Eager(capture(model, tmp_path / "program.pt2"))
    ids = torch.randint(1, 50, (16, 20))
    inputs = (ids, torch.ones_like(ids))
    with torch.no_grad():
        expected = models.attention().module(*inputs)
    assert cosine(program.run(inputs)[0], expected) > 0.999


def test_a_row_does_not_depend_on_what_it_is_computed_with(tmp_path: Path) -> None:
    """Activations are scaled per token, so a request's answer does not change with its batch."""
    model = models.attention()
    Int8Dynamic().apply_(model.module, Context(inputs=model.inputs))
    program = Eager(capture(model, tmp_path / "program.pt2"))
    ids = torch.randint(1, 50, (8, 12))
    (together,) = program.run((ids, torch.ones_like(ids)))
    for row in range(8):
        (alone,) = program.run((ids[row : row + 1], torch.ones_like(ids[:1])))
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-4, atol=1e-5)


def test_a_model_without_linear_layers_is_not_called_quantized(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="the model has no Linear"):
        package(models.chain(), tmp_path / "chain", quantize="int8", runtime="eager")
    assert not any((tmp_path / "chain").glob("*"))


def test_a_layer_whose_result_nobody_uses_does_not_count(tmp_path: Path) -> None:
    class Unused(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.layer(x)
            return x * 2

    model = Model(Unused(), (Input("x", torch.ones(2, 3), ("batch", None)),))
    with pytest.raises(InvalidRequest, match="nothing was quantized"):
        package(model, tmp_path / "unused", quantize="int8", runtime="eager")


def test_the_manifest_says_what_was_quantized_and_how_near_it_is(tmp_path: Path) -> None:
    artifact = load_artifact(package(models.attention(), tmp_path / "a", quantize="int8", runtime="eager"))
    recipe = artifact.manifest.recipe
    assert (recipe.quantize, recipe.quantized_layers) == ("int8", 4)
    assert recipe.cosine is not None
    assert 0.99 < recipe.cosine < 1
