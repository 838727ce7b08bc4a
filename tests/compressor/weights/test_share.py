from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from compressor.compress import compress_, problems
from compressor.step import Context
from compressor.steps import read_step
from compressor.weights.share import SharedWeight, ShareWeights, cluster
from tests import models
from tests.compressor.cut_in_two import assert_two_stages_give_what_the_whole_gives
from worker.errors import InvalidRequest

BITS = st.sampled_from([1, 2, 4, 8])


@settings(deadline=None, max_examples=40)
@given(
    bits=BITS,
    rows=st.integers(1, 9),
    columns=st.integers(1, 7),
    group=st.none() | st.integers(1, 10),
    seed=st.integers(0, 99),
)
def test_rows_are_those_of_the_whole_weight(bits: int, rows: int, columns: int, group: int | None, seed: int) -> None:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        shared = SharedWeight(weight, bits, group)
        whole = shared()
        index = torch.arange(rows).flip(0)
        assert torch.equal(shared.rows(index), whole[index])
    assert whole.shape == weight.shape
    for part in whole.split(group or rows):
        assert part.unique().numel() <= 2**bits


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 999), count=st.sampled_from([2, 4, 16]), size=st.integers(1, 400))
def test_each_value_is_the_mean_of_what_it_stands_for_and_the_nearest(seed: int, count: int, size: int) -> None:
    values = torch.randn(size, generator=torch.Generator().manual_seed(seed)).double()
    centres, index = cluster(values, count)
    apart = (values[:, None] - centres).abs()
    torch.testing.assert_close(apart.gather(1, index[:, None])[:, 0], apart.min(1).values)
    error = float((values - centres[index]).square().sum())
    linear = torch.linspace(float(values.min()), float(values.max()), count).double()
    first = float((values[:, None] - linear).abs().min(1).values.square().sum())
    assert error <= first + 1e-12, "Lloyd's rounds never make it worse"


def test_few_different_values_are_kept_exactly() -> None:
    weight = torch.tensor([0.5, -1.0, 0.25]).repeat(40).reshape(10, 12)
    assert torch.equal(SharedWeight(weight, 2)(), weight)


def test_a_pruned_weight_stays_pruned() -> None:
    weight = torch.randn(32, 32, generator=torch.Generator().manual_seed(1))
    weight[torch.rand(32, 32, generator=torch.Generator().manual_seed(2)) < 0.5] = 0
    assert bool((SharedWeight(weight, 4)()[weight == 0] == 0).all())


def test_linear_convolution_and_embedding_share_their_weights() -> None:
    module = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Flatten(), nn.Linear(8 * 16, 32))
    model = models.attention()
    compress_(model.module, ShareWeights(bits=4), context=Context.of(model))
    x = torch.randn(2, 3, 8, 8)
    expected = module(x)
    done = compress_(module, ShareWeights(bits=8), context=Context(inputs=()))
    assert [change.layer for change in done.changes] == ["2"], "the convolution is too small for 256 values"
    torch.testing.assert_close(module(x), expected, rtol=0.05, atol=0.02)
    done = compress_(nn.Sequential(module[0]), ShareWeights(bits=4), context=Context(inputs=()))
    assert done.after < 0.4 * done.before


def test_a_shared_weights_values_can_be_trained() -> None:
    module = nn.Sequential(nn.Linear(32, 32))
    compress_(module, ShareWeights(bits=4), context=Context(inputs=()))
    module(torch.ones(4, 32)).sum().backward()
    (values,) = (parameter for name, parameter in module.named_parameters() if name.endswith("codebook"))
    assert values.shape == (1, 16)
    assert values.grad is not None
    assert float(values.grad.sum()) == pytest.approx(4 * 32 * 32)


def test_stored_bytes_are_those_of_the_indices_and_the_codebook() -> None:
    module = nn.Sequential(nn.Linear(64, 64, bias=False))
    done = compress_(module, ShareWeights(bits=4, group_rows=16), context=Context(inputs=()))
    assert (done.before, done.after) == (64 * 64 * 4, 64 * 64 // 2 + 4 * 16 * 4)


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        (ShareWeights(layers=("out",), bits=8), "out: its 256 weights would take 1280 bytes instead of 1024"),
        (ShareWeights(bits=8, group_rows=1), "no layer gains by it; embedding: its 800 weights"),
        (ShareWeights(layers=("outt",)), 'matches nothing; the nearest is "out"'),
    ],
)
def test_layers_too_small_are_refused_before_anything_is_done(step: ShareWeights, reason: str) -> None:
    model = models.attention()
    with pytest.raises(InvalidRequest, match=reason):
        compress_(model.module, step, context=Context.of(model))


def test_a_later_step_on_the_same_layer_is_refused_and_on_another_is_not() -> None:
    model = models.attention()
    context, int8 = Context.of(model), read_step({"kind": "int8_dynamic"})
    (problem,) = problems(model.module, (ShareWeights(), int8), context)
    assert '"int8_dynamic" comes later and takes qkv too' in problem
    assert problems(model.module, (ShareWeights(layers=("embedding",)), int8), context) == []


def test_a_weight_that_is_not_finite_is_refused() -> None:
    module = nn.Sequential(nn.Linear(64, 64))
    next(module.parameters()).data[3, 3] = float("nan")
    with pytest.raises(InvalidRequest, match="not a finite number"):
        compress_(module, ShareWeights(), context=Context(inputs=()))


def test_a_shared_model_is_captured_and_cut_exactly(tmp_path: Path) -> None:
    model = models.attention()
    compress_(model.module, ShareWeights(bits=4, group_rows=5), context=Context.of(model))
    assert_two_stages_give_what_the_whole_gives(model, tmp_path / "a")
