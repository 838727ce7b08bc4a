from pathlib import Path
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn

from compressor.compress import compress_, problems
from compressor.model import Input, Model
from compressor.step import Context
from compressor.steps import read_step
from compressor.weights.low_rank import LowRank, decompose, ranks_within
from compressor.weights.moments import input_moments
from tests import models
from tests.compressor.cut_in_two import assert_two_stages_give_what_the_whole_gives
from worker.errors import InvalidRequest

SIZES = st.integers(1, 12)


def matrix(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).double()


@given(rows=SIZES, columns=SIZES, rank=SIZES, seed=st.integers(0, 99))
def test_the_error_of_a_rank_is_the_energy_of_what_it_leaves_out(rows: int, columns: int, rank: int, seed: int) -> None:
    weight = matrix(rows, columns, seed)
    one = decompose(weight)
    second, first = one.factors(rank)
    error = float((weight - second @ first).square().sum())
    assert error == pytest.approx(float(one.values[rank:].square().sum()), abs=1e-9)
    assert 1 - one.kept(rank) == pytest.approx(error / float(weight.square().sum()), abs=1e-9)


@settings(deadline=None, max_examples=30)
@given(rows=SIZES, columns=SIZES, rank=SIZES, seed=st.integers(0, 99))
def test_the_error_of_an_aware_rank_in_the_layers_outputs_is_the_energy_of_what_it_leaves_out(
    rows: int, columns: int, rank: int, seed: int
) -> None:
    weight, taken = matrix(rows, columns, seed), matrix(50, columns, seed + 1) @ matrix(columns, columns, seed + 2)
    one = decompose(weight, taken.T @ taken)
    second, first = one.factors(rank)
    error = float((taken @ (weight - second @ first).T).square().sum())
    of_the_ridge = 1e-4 * float(one.values.square().sum())
    assert error == pytest.approx(float(one.values[rank:].square().sum()), abs=of_the_ridge)
    plain_second, plain_first = decompose(weight).factors(rank)
    assert error <= float((taken @ (weight - plain_second @ plain_first).T).square().sum()) + of_the_ridge


@given(energy=st.floats(0.01, 0.99), seed=st.integers(0, 99))
def test_the_rank_for_an_energy_is_the_least_that_keeps_it(energy: float, seed: int) -> None:
    one = decompose(matrix(9, 7, seed))
    rank = one.rank_for(energy)
    assert one.kept(rank) >= energy - 1e-12
    assert rank == 1 or one.kept(rank - 1) < energy


@settings(deadline=None, max_examples=30)
@given(budget=st.floats(0.3, 0.99), multiple=st.sampled_from([1, 2, 8]), seed=st.integers(0, 99))
def test_ranks_stay_within_the_budget_and_favour_layers_that_need_few(budget: float, multiple: int, seed: int) -> None:
    easy = matrix(32, 3, seed) @ matrix(3, 32, seed + 1) + 1e-3 * matrix(32, 32, seed + 2)
    found = {"easy": decompose(easy), "hard": decompose(matrix(32, 32, seed + 3))}
    ranks = ranks_within(found, budget, multiple)
    assert sum(min(64 * rank, 1024) for rank in ranks.values()) <= budget * 2048
    assert ranks["easy"] <= ranks["hard"]


def test_a_convolution_becomes_two_that_give_what_it_gave() -> None:
    layer = nn.Conv2d(6, 10, 3, stride=2, padding=1, dilation=2)
    layer.weight.data = (matrix(10, 3) @ matrix(3, 54)).float().reshape(10, 6, 3, 3)
    module = nn.Sequential(layer)
    x = torch.randn(2, 6, 9, 9)
    expected = module(x)
    done = compress_(module, LowRank(energy=0.9999, multiple=1), context=Context(inputs=()))
    assert done.changes[0].what.startswith("rank 3 of 10")
    assert done.after == 4 * (3 * 54 + 10 * 3 + 10)
    torch.testing.assert_close(module(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("padding", [1, "same"])
@pytest.mark.parametrize("mode", ["zeros", "reflect"])
def test_moments_are_of_what_a_convolution_multiplies(padding: int | str, mode: Literal["zeros", "reflect"]) -> None:
    layer = nn.Conv2d(3, 4, 3, padding=padding, padding_mode=mode, bias=False)
    module = nn.Sequential(layer)
    x = torch.randn(5, 3, 6, 6)
    moments = input_moments(module, {"0": layer}, Context(inputs=(), calibration=[(x,)]))["0"]
    weight = layer.weight.detach().double().flatten(1)
    energy = float((weight @ moments @ weight.T).trace())
    assert energy == pytest.approx(float(module(x).detach().square().sum()), rel=1e-4)


def test_calibration_makes_outputs_nearer() -> None:
    def apart(step: LowRank) -> float:
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(64, 64))
        x = torch.randn(500, 8) @ torch.randn(8, 64)  # what the layer takes lies in 8 of its 64 dimensions
        expected = module(x).detach()
        compress_(module, step, context=Context(inputs=(), calibration=[(x,)]))
        return float((module(x) - expected).detach().norm() / expected.norm())

    assert apart(LowRank(rank=8, aware=True)) < 1e-3
    assert apart(LowRank(rank=8)) > 0.1


def test_layers_that_would_not_get_smaller_are_kept_and_said_so() -> None:
    torch.manual_seed(0)
    flat = nn.Linear(32, 32)
    thin = nn.Linear(32, 32)
    thin.weight.data = (matrix(32, 2) @ matrix(2, 32)).float()
    module = nn.Sequential(flat, thin, nn.Linear(32, 1))
    done = compress_(module, LowRank(energy=0.999), context=Context(inputs=()))
    told = [change.what for change in done.changes]
    assert told[0] == "kept: rank 32 would take as many weights, or more"
    assert told[1].startswith("rank 8 of 32, 1.0000 of the energy"), "rounded up to the multiple"
    assert "too small" in told[2]
    assert module[0] is flat
    assert done.after < done.before


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        (LowRank(rank=600), r"no layer can get smaller; qkv: a \[48, 16\] matrix gets no smaller at rank 16"),
        (LowRank(energy=0.9999999), "no layer gets smaller: qkv needs rank 16"),
        (LowRank(budget=0.01), "even rank 1 leaves"),
        (LowRank(energy=0.9, aware=True), "there is no calibration data"),
    ],
)
def test_what_gains_nothing_is_refused(step: LowRank, reason: str) -> None:
    model = models.attention()
    before = {name: weight.clone() for name, weight in model.module.state_dict().items()}
    with pytest.raises(InvalidRequest, match=reason):
        compress_(model.module, step, context=Context.of(model))
    after = model.module.state_dict()
    assert all(torch.equal(weight, after[name]) for name, weight in before.items())


def test_two_targets_or_none_are_refused() -> None:
    for keys in ({}, {"energy": 0.9, "rank": 3}):
        with pytest.raises(ValidationError, match="give one of energy, rank and budget"):
            LowRank.model_validate(keys)


def test_a_grouped_convolution_is_left_as_it_is() -> None:
    module = nn.Sequential(nn.Conv2d(8, 8, 3, groups=4))
    (problem,) = problems(module, (LowRank(rank=1),), Context(inputs=()))
    assert "it has 4 groups" in problem


def test_a_weight_that_is_not_finite_is_refused() -> None:
    module = nn.Sequential(nn.Linear(16, 16))
    next(module.parameters()).data[0, 0] = float("inf")
    with pytest.raises(InvalidRequest, match="not a finite number"):
        compress_(module, LowRank(rank=2), context=Context(inputs=()))


def test_real_convolutions_keep_their_answers_at_less_weights() -> None:
    if not models.CIFAR.is_dir():
        pytest.skip(f"real weights are not there: {models.CIFAR}")
    model = models.resnet20()
    x = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model.module.eval()(x)
        context = Context.of(model, calibration=[(x,)])
        done = compress_(model.module, LowRank(budget=0.7, aware=True), context=context)
        found = model.module(x)
    assert done.after < 0.72 * done.before
    assert float((found - expected).norm() / expected.norm()) < 0.2


def test_a_thinner_model_is_quantized_captured_and_cut_exactly(tmp_path: Path) -> None:
    model = models.attention()
    steps = (LowRank(rank=4), read_step({"kind": "int8_dynamic"}))
    done = compress_(model.module, *steps, context=Context.of(model))
    assert len(done.done[1].changes) == 8, "two int8 layers for each of four"
    assert_two_stages_give_what_the_whole_gives(model, tmp_path / "a")


def test_a_thinner_convolutional_model_is_captured_and_cut_exactly(tmp_path: Path) -> None:
    model = Model(
        models.CifarResNet(1), (Input("image", torch.randn(2, 3, 32, 32), ("batch", None, None, None)),), ("logits",)
    )
    compress_(model.module, LowRank(budget=0.6, layers=("layer3",)), context=Context.of(model))
    assert_two_stages_give_what_the_whole_gives(model, tmp_path / "a")
