from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn

from compressor.compress import compress_
from compressor.pruning.masks import as_rows, block_scores, from_rows, keep_best, keep_n_of_m
from compressor.pruning.prune_weights import PruneWeights
from compressor.step import Context
from tests import models
from tests.compressor.cut_in_two import assert_two_stages_give_what_the_whole_gives
from worker.errors import InvalidRequest

SEEDS = st.integers(0, 99)


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(8, 12, 3), nn.Flatten(), nn.Linear(48, 20))


def rows(layer: nn.Module) -> torch.Tensor:
    assert isinstance(layer.weight, torch.Tensor)
    return as_rows(layer.weight.detach())


@settings(deadline=None, max_examples=40)
@given(sparsity=st.floats(0.05, 0.95), score=st.sampled_from(["l1", "l2", "random"]), seed=SEEDS)
def test_as_many_weights_go_as_were_asked_for(sparsity: float, score: str, seed: int) -> None:
    module = net(seed)
    step = PruneWeights.model_validate({"sparsity": sparsity, "score": score})
    compress_(module, step, context=Context(inputs=(), seed=seed))
    for layer in (module[0], module[2]):
        matrix = rows(layer)
        assert int((matrix == 0).sum()) == int(sparsity * matrix.numel() + 1e-6)


@settings(deadline=None, max_examples=40)
@given(sparsity=st.floats(0.05, 0.95), seed=SEEDS)
def test_the_weights_that_stay_are_the_largest(sparsity: float, seed: int) -> None:
    module = net(seed)
    before = [rows(module[0]).clone(), rows(module[2]).clone()]
    compress_(module, PruneWeights(sparsity=sparsity, among="all"), context=Context(inputs=()))
    kept = torch.cat([old[rows(layer) != 0].abs() for old, layer in zip(before, (module[0], module[2]), strict=True)])
    gone = torch.cat([old[rows(layer) == 0].abs() for old, layer in zip(before, (module[0], module[2]), strict=True)])
    assert gone.numel() == int(sparsity * (kept.numel() + gone.numel()) + 1e-6)
    assert float(gone.max()) <= float(kept.min())


@settings(deadline=None, max_examples=40)
@given(counts=st.sampled_from([(2, 4), (1, 4), (4, 8), (1, 2)]), score=st.sampled_from(["l1", "random"]), seed=SEEDS)
def test_n_of_every_m_inputs_stay(counts: tuple[int, int], score: str, seed: int) -> None:
    n, m = counts
    module = net(seed)
    before = [rows(module[0]).clone(), rows(module[2]).clone()]
    step = PruneWeights.model_validate({"n_of_m": f"{n}:{m}", "score": score})
    compress_(module, step, context=Context(inputs=(), seed=seed))
    for old, layer in zip(before, (module[0], module[2]), strict=True):
        groups = rows(layer).reshape(-1, m)
        assert bool(((groups != 0).sum(1) == n).all())
        if score == "l1":
            lost = old.reshape(-1, m).abs().masked_fill(groups != 0, 0)
            least = old.reshape(-1, m).abs().masked_fill(groups == 0, float("inf")).amin(1)
            assert bool((lost.amax(1) <= least).all())


@settings(deadline=None, max_examples=40)
@given(among=st.sampled_from(["layer", "row"]), score=st.sampled_from(["l1", "l2", "random"]), seed=SEEDS)
def test_blocks_go_whole(among: str, score: str, seed: int) -> None:
    module = nn.Sequential(nn.Linear(32, 16))
    step = PruneWeights.model_validate({"sparsity": 0.5, "score": score, "block": (4, 8), "among": among})
    compress_(module, step, context=Context(inputs=(), seed=seed))
    blocks = (rows(module[0]) == 0).reshape(4, 4, 4, 8).permute(0, 2, 1, 3).flatten(2)  # [rows, across, weights]
    assert bool((blocks.all(2) == blocks.any(2)).all())
    assert int(blocks.all(2).sum()) == 8
    if among == "row":
        assert blocks.all(2).sum(1).tolist() == [2, 2, 2, 2]


@given(shape=st.tuples(*[st.integers(1, 5)] * 4), seed=SEEDS)
def test_rows_of_a_convolution_come_back(shape: tuple[int, int, int, int], seed: int) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(from_rows(as_rows(weight), weight.shape), weight)


def test_scores_are_means_so_that_smaller_blocks_at_the_edge_are_compared_fairly() -> None:
    ones = torch.ones(5, 7)
    for score in ("l1", "l2"):
        assert torch.equal(block_scores(ones, (2, 3), score), torch.ones(3, 3).double())


def test_ties_are_broken_by_place() -> None:
    scores = {"a": torch.ones(1, 4)}
    assert keep_best(scores, scores, 0.5)["a"].tolist() == [[True, True, False, False]]
    assert keep_n_of_m(torch.ones(1, 4), 2, 4).tolist() == [[True, True, False, False]]


def test_random_masks_are_the_seeds_and_differ_between_layers() -> None:
    def mask(seed: int) -> torch.Tensor:
        module = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
        compress_(module, PruneWeights(sparsity=0.5, score="random"), context=Context(inputs=(), seed=seed))
        return torch.stack([rows(layer) == 0 for layer in module])

    assert torch.equal(mask(1), mask(1))
    assert not torch.equal(mask(1), mask(2))
    first, second = mask(1)
    assert not torch.equal(first, second)


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        (PruneWeights(n_of_m="2:5"), "no layer can be pruned so; qkv: its 16 inputs are no multiple of 5"),
        (PruneWeights(sparsity=0.1, block=(64, 64)), "it has 1 blocks of 64 x 64, of which 10% is none"),
        (PruneWeights(sparsity=0.01, among="row", layers=("out",)), "out: it has 16 blocks of 1 x 1"),
        (PruneWeights(sparsity=0.5, layers=("embedding",)), "no Linear or Conv2d"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_done(step: PruneWeights, reason: str) -> None:
    model = models.attention()
    with pytest.raises(InvalidRequest, match=reason):
        compress_(model.module, step, context=Context.of(model))


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({}, "one of sparsity, below and n_of_m"),
        ({"sparsity": 0.5, "n_of_m": "2:4"}, "one of sparsity, below and n_of_m"),
        ({"n_of_m": "4:4"}, "keeps all"),
        ({"n_of_m": "2:4", "block": (2, 2)}, "leave block and among out"),
        ({"sparsity": float("nan")}, "less than 1"),
    ],
)
def test_contradictory_keys_are_refused(keys: dict[str, object], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        PruneWeights.model_validate(keys)


def test_a_pruned_model_is_captured_and_cut_exactly(tmp_path: Path) -> None:
    model = models.attention()
    compress_(model.module, PruneWeights(n_of_m="2:4"), context=Context.of(model))
    assert_two_stages_give_what_the_whole_gives(model, tmp_path / "a")
