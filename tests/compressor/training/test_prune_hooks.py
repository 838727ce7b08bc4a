from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from compressor.pruning.coupling import coupled
from compressor.pruning.prune_weights import PruneWeights
from compressor.training.prune_hooks import GradualMasks, KeepZeros, UnitPenalty, WeightPenalty, cubic
from compressor.weights.share import SharedWeight


@given(final=st.floats(0.01, 0.99), parts=st.lists(st.floats(-1, 2), min_size=2, max_size=10))
def test_the_schedule_rises_from_nothing_to_all_and_slows_down(final: float, parts: Sequence[float]) -> None:
    assert cubic(0, final) == 0
    assert cubic(1, final) == final
    found = [cubic(part, final) for part in sorted(parts)]
    assert found == sorted(found)
    assert all(0 <= one <= final for one in found)
    assert cubic(0.5, final) == pytest.approx(final * 7 / 8)


def test_zeros_stay_zero_and_a_layer_of_nothing_but_zeros_learns() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    first, second, third = (layer.weight for layer in module if isinstance(layer, nn.Linear))
    first.data[1, :3] = 0
    second.data.zero_()
    hook = KeepZeros(module)
    with torch.no_grad():
        for weight in (first, second, third):
            weight.add_(1)
    hook.after(1)
    assert first[1].count_nonzero() == 1
    assert first.count_nonzero() == 13
    assert bool(second.all() and third.all())


def test_the_zero_of_a_codebook_stays_zero() -> None:
    weight = torch.randn(16, 16)
    weight[:, :8] = 0
    shared = SharedWeight(weight, 4)
    hook = KeepZeros(shared)
    with torch.no_grad():
        shared.codebook.add_(0.5)
    hook.after(1)
    with torch.no_grad():
        assert torch.equal(shared() == 0, weight == 0)


def masks(steps: int) -> tuple[nn.Linear, GradualMasks]:
    torch.manual_seed(0)
    layer = nn.Linear(20, 20)
    hook = GradualMasks(PruneWeights(sparsity=0.8), {"layer": layer}, begin=0.2, end=0.8, every=2, seed=0)
    hook.begin(steps)
    return layer, hook


def test_masks_grow_between_begin_and_end_and_stay_after() -> None:
    layer, hook = masks(20)
    zeros = []
    for step in range(1, 21):
        with torch.no_grad():
            layer.weight += 0.01
        hook.after(step)
        zeros.append(float((layer.weight == 0).double().mean()))
    assert zeros == sorted(zeros)
    assert zeros[3] == 0
    assert 0 < zeros[5] < zeros[7] < zeros[13]
    assert zeros[15] == zeros[19] == pytest.approx(0.8)


def test_an_interrupted_schedule_goes_on_as_if_it_had_not_been() -> None:
    layer, hook = masks(20)
    for step in range(1, 10):
        hook.after(step)
    other, again = masks(20)
    other.load_state_dict(layer.state_dict())
    again.restore(hook.state())
    for step in range(10, 21):
        hook.after(step)
        again.after(step)
    assert torch.equal(other.weight, layer.weight)


def test_penalties_are_the_norms_that_they_promise() -> None:
    layer = nn.Linear(3, 4)
    l1, l2 = WeightPenalty([layer], "l1", 0.5).penalty(), WeightPenalty([layer], "l2", 0.5).penalty()
    assert float(l1.detach()) == pytest.approx(0.5 * float(layer.weight.detach().abs().sum()), rel=1e-5)
    assert float(l2.detach()) == pytest.approx(0.5 * float(layer.weight.detach().square().sum()), rel=1e-5)
    (slope,) = torch.autograd.grad(l1, [layer.weight])
    assert torch.equal(slope, 0.5 * layer.weight.detach().sign())


def test_the_penalty_of_units_is_the_norm_of_each_with_all_its_weights() -> None:
    module = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
    first, last = (layer.weight.detach() for layer in module if isinstance(layer, nn.Linear))
    groups = coupled(module, [torch.randn(2, 3)])
    found = UnitPenalty(module, groups, 2.0).penalty()
    whole = torch.cat([first, module.get_parameter("0.bias").detach()[:, None], last.T], dim=1)
    norms = torch.cat([first, last.T], dim=1).norm(dim=1)
    assert float(found.detach()) == pytest.approx(2.0 * whole.shape[1] ** 0.5 * float(norms.sum()), rel=1e-4)


def test_the_penalty_alone_drives_whole_units_to_zero() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
    hook = UnitPenalty(module, coupled(module, [torch.randn(2, 3)]), 1e-2)
    taken, given = module.get_parameter("0.weight"), module.get_parameter("2.weight")
    before = torch.cat([taken, given.T], 1).norm(dim=1)
    for _ in range(300):
        slopes = torch.autograd.grad(hook.penalty(), [taken, given])
        with torch.no_grad():
            for weight, slope in zip((taken, given), slopes, strict=True):
                weight.sub_(slope, alpha=0.1)
    after = torch.cat([taken, given.T], 1).norm(dim=1)
    assert bool((after < 0.05 * before).all())
