import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from compressor.capture import capture
from compressor.compress import compress_, problems
from compressor.model import Input
from compressor.profiling.measure import cosine
from compressor.pruning.prune_weights import PruneWeights
from compressor.quantization.formats import (
    FORMATS,
    Binary,
    Fp8,
    Fp16,
    Int4WeightOnly,
    Int8Dynamic,
    Int8WeightOnly,
    Ternary,
)
from compressor.quantization.quantize import INT8_OPERATOR, operator_name
from compressor.quantization.short_floats import Fp8Linear, shortened
from compressor.step import Context, Step
from compressor.steps import read_steps
from compressor.training.prune_training import PruneGradually
from compressor.training.training_data import Rows
from compressor.training.training_steps import FineTune
from compressor.weights.share import ShareWeights
from tests import models
from tests.compressor.cut_in_two import assert_two_stages_give_what_the_whole_gives
from worker.errors import InvalidRequest
from worker.expression import evaluate
from worker.runtime import Eager

CPU = [step for step in FORMATS if "cpu" in step.devices]


def _name(step: type[Step]) -> str:
    return str(step.model_fields["kind"].default)


@pytest.mark.parametrize("kind", CPU, ids=_name)
def test_every_format_is_captured_cut_and_gives_what_the_module_gives(kind: type[Step], tmp_path: Path) -> None:
    model = models.attention()
    compress_(model.module, kind.model_validate({}), context=Context.of(model))
    assert_two_stages_give_what_the_whole_gives(model, tmp_path / "model")


@pytest.mark.parametrize(
    ("step", "least", "share"),
    [
        (Int8Dynamic(), 0.999, 0.5),  # the embedding stays
        (Int8WeightOnly(), 0.999, 0.33),
        (Int4WeightOnly(), 0.98, 0.21),
        (Fp16(), 0.99999, 0.501),
        (Ternary(), 0.8, 0.15),
        (Binary(), 0.7, 0.12),
    ],
    ids=lambda value: value.kind if isinstance(value, Step) else "",
)
def test_a_format_keeps_near_and_saves_what_it_says(step: Step, least: float, share: float) -> None:
    model = models.attention()
    ids = torch.randint(1, 50, (16, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        exact = model.module(ids, torch.ones_like(ids))
        done = compress_(model.module, step, context=Context.of(model))
        assert cosine(model.module(ids, torch.ones_like(ids)), exact) > least
    assert done.after < share * done.before


def test_convolutions_are_stored_in_few_bits_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.ReLU(), nn.Conv2d(8, 8, 3, 1, 1, groups=2))
    model = replace(
        models.chain(),
        module=net,
        inputs=(Input("image", torch.randn(2, 3, 8, 8), ("batch", None, None, None)),),
    )
    image = torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        exact = net(image)
        compress_(
            net,
            *read_steps([{"kind": "int8_weight_only", "layers": ["0"]}, {"kind": "bf16", "layers": ["2"]}]),
            context=Context.of(model),
        )
        torch.testing.assert_close(net(image), exact, rtol=0.05, atol=0.05)
    program = capture(model, tmp_path / "program.pt2")
    assert {weight.dtype for weight in program.weights.values()} == {torch.uint8, torch.float32, torch.bfloat16}


def test_a_layer_too_small_to_gain_is_left_as_it_is_and_refused_where_it_is_named() -> None:
    net = nn.Sequential(nn.Linear(1, 2), nn.Linear(64, 64))
    context = Context(inputs=())
    done = compress_(net, Int4WeightOnly(layers=("1",)), context=context)
    assert [change.layer for change in done.changes] == ["1"]
    told = 'step 1 ("int4_weight_only"): 0: too small: its 2 rows of 1 would take 10 bytes instead of 8'
    assert problems(net, (Int4WeightOnly(layers=("0",)),), context) == [told]
    assert problems(net, (Int4WeightOnly(),), context) == [told]


def test_fp8_is_refused_where_there_is_no_device_for_it() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    net = nn.Sequential(nn.Linear(32, 32))
    (problem,) = problems(net, (Fp8(),), Context.of(models.chain()))
    assert "fp8 is computed on CUDA devices, and there is none here; take what CPUs compute, such as int8" in problem


def test_fp8_weights_and_their_scales_are_the_layer() -> None:
    layer = nn.Linear(32, 16)
    made = Fp8Linear(layer)
    torch.testing.assert_close(made.weight.float() * made.scale.t(), layer.weight.detach(), rtol=0.07, atol=1e-3)


def test_fp8_is_captured_and_cut_exactly(tmp_path: Path) -> None:
    model = models.attention()
    changes = Fp8().apply_(model.module, Context.of(model, target="cuda"))
    assert [change.layer for change in changes] == ["qkv", "out", "up", "down"]
    assert_two_stages_give_what_the_whole_gives(model, tmp_path / "model")


def test_fp8_takes_its_rows_in_any_order_in_memory() -> None:
    made = Fp8Linear(nn.Linear(32, 16))
    x = torch.randn(32, 6).t()
    assert torch.equal(made(x), made(x.contiguous()))


def test_int8_for_cuda_gives_what_int8_gives_in_sizes_that_its_kernel_takes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(21, 13), nn.ReLU(), nn.Linear(13, 37, bias=False))
    model = replace(models.chain(), module=net, inputs=(Input("x", torch.randn(2, 3, 21), ("batch", "length", None)),))
    plain = copy.deepcopy(net)
    Int8Dynamic().apply_(plain, Context.of(model))
    Int8Dynamic().apply_(net, Context.of(model, target="cuda:0"))
    program = capture(model, tmp_path / "program.pt2")
    products = [step for step in program.steps if operator_name(step) == INT8_OPERATOR]
    assert len(products) == 2
    for batch, length in ((1, 1), (3, 5), (8, 4), (5, 9)):
        x = torch.randn(batch, length, 21)
        ((found,),) = (Eager(program).run((x,)),)
        assert torch.equal(found, plain(x))
        sizes = dict(zip(program.hints, (batch, length), strict=True))
        for step in products:
            (rows, depth), (inner, columns) = (
                [evaluate(size, sizes) for size in program.values[argument.name].shape] for argument in step.args
            )
            assert rows > 16
            assert depth == inner
            assert depth % 8 == columns % 8 == 0
    assert_two_stages_give_what_the_whole_gives(model, tmp_path / "model")


def test_a_weight_too_large_for_fp16_is_refused_with_its_layer() -> None:
    layer = nn.Linear(4, 4)
    with torch.no_grad():
        layer.weight[0, 0] = 1e6
    with pytest.raises(InvalidRequest, match=r"0: a weight of 1e\+06 is too large for torch\.float16"):
        compress_(nn.Sequential(layer), Fp16(), context=Context(inputs=()))
    assert shortened(layer.weight, torch.bfloat16).dtype == torch.bfloat16


ONE_BIT: list[Step] = [Binary(), ShareWeights(bits=1)]


@pytest.mark.parametrize("step", ONE_BIT, ids=lambda step: step.kind)
@pytest.mark.parametrize(
    "earlier",
    [
        [PruneWeights(sparsity=0.5, layers=("up", "down"))],
        [PruneGradually(sparsity=0.5, prune=("up", "down")), FineTune()],
    ],
    ids=lambda steps: str(steps[0].kind),
)
def test_one_bit_that_would_bring_pruned_weights_back_is_refused_before_anything_is_done(
    step: Step, earlier: list[Step]
) -> None:
    model = models.attention()
    rows = Rows((torch.ones(4, 5, dtype=torch.int64),) * 2, torch.zeros(4, 16), towards="values")
    context = Context.of(model, training=rows)
    (problem,) = problems(model.module, [*earlier, step], context)
    assert f'up: "{earlier[0].kind}" sets weights of it to zero, and one bit has no zero' in problem
    assert "; take " in problem
    elsewhere = step.model_copy(update={"layers": ("*", "!up", "!down")})
    assert problems(model.module, [*earlier, elsewhere], context) == []


@pytest.mark.parametrize("step", ONE_BIT, ids=lambda step: step.kind)
def test_one_bit_is_refused_for_a_layer_that_came_pruned(step: Step) -> None:
    net = nn.Sequential(nn.Linear(64, 64))
    compress_(net, PruneWeights(sparsity=0.3), context=Context(inputs=()))
    with pytest.raises(InvalidRequest, match=r'0: 30% of its weights are zero, .* layers: \["\*", "!0"\]'):
        compress_(net, step, context=Context(inputs=()))


def test_a_row_of_zeros_alone_stays_so_in_one_bit() -> None:
    net = nn.Sequential(nn.Embedding(50, 64, padding_idx=0))
    compress_(net, Binary(), context=Context(inputs=()))
    rows = net(torch.tensor([0, 1]))
    assert float(rows[0].abs().max()) < 1e-9 < float(rows[1].abs().min())
