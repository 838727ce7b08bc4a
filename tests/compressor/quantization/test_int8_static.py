from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from compressor.capture import capture
from compressor.compress import compress_, problems
from compressor.model import Input, Model
from compressor.package import package
from compressor.packaging.compile import INT8_CONVOLUTION_CALLS, calls, compile_stage, compiler_problem
from compressor.profiling.measure import cosine, distance
from compressor.quantization.formats import Int8Dynamic
from compressor.quantization.int8_static import Int8Static
from compressor.quantization.quantize import int8_convolutions, int8_layers
from compressor.quantization.static_graph import Quantized
from compressor.quantization.static_linear import input_ranges
from compressor.recipe_file import RecipeFile
from compressor.step import Context
from tests import models
from worker.artifact import load_artifact
from worker.errors import InvalidRequest
from worker.runtime import Aot, Eager
from worker.shard import load_program, load_shard


class Block(nn.Module):
    """Two convolutions with batch norms, a residual, and a linear layer: x FP32 [batch, 3, 8, 8] → [batch, 4]."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.second = nn.Conv2d(16, 16, 3, 1, 1)
        self.out = nn.Linear(16, 4)
        self.norm.running_mean = torch.randn(16) * 0.1
        self.norm.running_var = torch.rand(16) + 0.5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.first(x)))
        x = torch.relu(x + self.second(x))
        found: torch.Tensor = self.out(x.mean((2, 3)))
        return found


def _model() -> Model:
    return Model(Block(), (Input("x", torch.randn(2, 3, 8, 8), ("batch", None, None, None)),))


def _images(count: int = 4) -> list[tuple[torch.Tensor, ...]]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(8, 3, 8, 8, generator=generator),) for _ in range(count)]


def _context(model: Model) -> Context:
    return Context.of(model, calibration=_images())


def test_convolutions_and_linear_layers_become_int8(tmp_path: Path) -> None:
    model = _model()
    (image,) = _images(1)[0]
    with torch.no_grad():
        exact = model.module.eval()(image)
    done = compress_(model.module, Int8Static(), context=_context(model))
    assert {change.layer for change in done.changes} == {"first", "second", "out"}
    assert done.after < 0.35 * done.before
    with torch.no_grad():
        found = done.module(image)
    assert cosine(found, exact) > 0.99
    program = capture(Model(done.module, model.inputs), tmp_path / "program.pt2")
    assert (int8_convolutions(program), int8_layers(program)) == (2, 1)
    assert torch.equal(Eager(program).run((image,))[0], found)


def test_compiled_convolutions_are_int8_in_the_generated_code(tmp_path: Path) -> None:
    problem = compiler_problem()
    if problem:
        pytest.skip(problem)
    model = _model()
    done = compress_(model.module, Int8Static(), context=_context(model))
    program = capture(Model(done.module, model.inputs), tmp_path / "program.pt2")
    compile_stage(program, tmp_path / "compiled.pt2", frozen=True)
    assert calls(tmp_path / "compiled.pt2", INT8_CONVOLUTION_CALLS)
    image = torch.randn(5, 3, 8, 8)
    assert distance(Aot(tmp_path / "compiled.pt2").run((image,)), Eager(program).run((image,))) < 0.05


def test_two_stages_give_what_the_whole_gives(tmp_path: Path) -> None:
    model = _model()
    recipe = RecipeFile(steps=(Int8Static(),))
    folder = package(model, tmp_path / "m", compression=recipe, context=_context, stages=(2,), runtime="eager")
    artifact = load_artifact(folder)
    assert artifact.manifest.recipe.quantized_layers == 3
    (entry,) = artifact.manifest.cuts
    assert (
        0.1 < sum(artifact.manifest.profile.seconds[: entry.points[0]]) / sum(artifact.manifest.profile.seconds) < 0.9
    )
    image = torch.randn(5, 3, 8, 8)
    passing: tuple[torch.Tensor, ...] = (image,)
    for index in range(2):
        passing = load_shard(artifact, stage=index, stages=2).run(passing)
    assert torch.equal(passing[0], Eager(load_program(artifact)).run((image,))[0])


def test_only_the_layers_that_are_named_are_quantized(tmp_path: Path) -> None:
    model = _model()
    steps = (Int8Dynamic(layers=("out",)), Int8Static(layers=("second",)))
    done = compress_(model.module, *steps, context=_context(model))
    assert [change.layer for change in done.changes] == ["out", "second"]
    program = capture(Model(done.module, model.inputs), tmp_path / "program.pt2")
    assert (int8_convolutions(program), int8_layers(program)) == (1, 1)


class Told(nn.Module):
    def __init__(self, given: Callable[[torch.Tensor], object]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.given = given

    def forward(self, x: torch.Tensor) -> object:
        return self.given(self.conv(x))


@pytest.mark.parametrize(
    ("given", "kind"), [(lambda x: x, torch.Tensor), (lambda x: (x, x + 1), tuple), (lambda x: {"a": x}, dict)]
)
def test_the_quantized_model_returns_what_the_model_returned(
    given: Callable[[torch.Tensor], object], kind: type
) -> None:
    model = Model(Told(given), (Input("x", torch.randn(2, 3, 8, 8), ("batch", None, None, None)),))
    done = compress_(model.module, Int8Static(), context=_context(model))
    assert type(done.module(torch.randn(3, 3, 8, 8))) is kind
    assert done.module.train().training is False


def test_what_is_not_a_number_in_the_calibration_data_is_told_with_its_layer() -> None:
    model = models.toy()
    bad = (torch.full((2, 3, 8), float("nan")), torch.ones(2, 3, 8))
    with pytest.raises(InvalidRequest, match="give the layer first what is not a finite number"):
        compress_(model.module, Int8Static(), context=Context.of(model, calibration=[bad]))


def test_a_range_leaves_out_the_few_that_are_far_out() -> None:
    layer = nn.Linear(1000, 2)
    net = nn.Sequential(layer)
    normal = torch.randn(64, 1000, generator=torch.Generator().manual_seed(0))
    far = normal.clone()
    far[0, 0] = 30.0
    (plain,) = input_ranges(net, {"0": layer}, [(normal,)]).values()
    (cut,) = input_ranges(net, {"0": layer}, [(far,)]).values()
    assert 3 < plain <= float(normal.abs().max())
    assert cut < 25


def test_seven_bits_keep_what_convolutions_take_below_where_two_products_saturate() -> None:
    model = _model()
    done = compress_(model.module, Int8Static(activation_bits=7), context=_context(model))
    assert isinstance(done.module, Quantized)
    graph = done.module.graph.graph
    quantizes = [step.args for step in graph.nodes if "quantize_per_tensor.default" in str(step.target)]
    assert quantizes
    assert all(args[4] == 127 for args in quantizes)
    with torch.no_grad():
        (image,) = _images(1)[0]
        assert cosine(done.module(image), model.module.eval()(image)) > 0.98


def test_a_step_keeps_the_bits_that_its_machine_chose() -> None:
    step = Int8Static()
    assert step.activation_bits in {7, 8}
    assert step.model_dump()["activation_bits"] == step.activation_bits
    with pytest.raises(ValueError, match="7 or 8"):
        Int8Static(activation_bits=6)  # type: ignore[arg-type]


def test_convolutions_whose_padding_is_a_word_are_quantized_too() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(
        *(nn.Conv2d(3, 16, 3, padding="same", dilation=2), nn.ReLU()),
        *(nn.Conv2d(16, 16, (2, 3), padding="same", bias=False), nn.ReLU()),
        nn.Conv2d(16, 8, 3, padding="valid"),
    )
    model = Model(module, (Input("x", torch.randn(2, 3, 8, 8), ("batch", None, None, None)),))
    (image,) = _images()[0]
    with torch.no_grad():
        exact = module(image)
        done = compress_(module, Int8Static(), context=_context(model))
        assert [change.layer for change in done.changes] == ["0", "2", "4"]
        assert cosine(done.module(image), exact) > 0.99


def test_convolutions_in_64_bits_are_refused_before_anything_is_done() -> None:
    module = Block().double()
    (problem,) = problems(module, (Int8Static(),), _context(_model()))
    assert "first: its weight is torch.float64, and int8 convolutions give at most float32" in problem
    assert problems(module, (Int8Static(layers=("out",)),), _context(_model())) == []
