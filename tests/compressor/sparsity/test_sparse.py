from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn

from compressor.compress import compress_, problems
from compressor.model import Input, Model
from compressor.profiling.faster import fastest
from compressor.pruning.prune_weights import PruneWeights, mask_
from compressor.sparsity.block_linear import BlockLinear
from compressor.sparsity.sparse import Sparse
from compressor.sparsity.sparse_gpu import Sparse24
from compressor.sparsity.sparse_weight import BsrWeight, CsrWeight, NofMWeight
from compressor.step import Context, stored_bytes
from compressor.steps import read_step
from compressor.weights.share import ShareWeights
from tests import models
from tests.compressor.cut_in_two import assert_two_stages_give_what_the_whole_gives
from worker.errors import InvalidRequest

SHAPES = st.one_of(
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3)),
)


def holed(shape: tuple[int, ...], zeros: float, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator) * (torch.rand(shape, generator=generator) >= zeros)


@settings(deadline=None, max_examples=60)
@given(
    shape=SHAPES, zeros=st.floats(0, 1), block=st.tuples(st.integers(1, 4), st.integers(1, 4)), seed=st.integers(0, 9)
)
def test_what_is_stored_comes_back_exactly(
    shape: tuple[int, ...], zeros: float, block: tuple[int, int], seed: int
) -> None:
    weight = holed(shape, zeros, seed)
    with torch.no_grad():
        assert torch.equal(CsrWeight(weight)(), weight)
        assert torch.equal(BsrWeight(weight, block)(), weight)


@settings(deadline=None, max_examples=40)
@given(
    counts=st.sampled_from([(2, 4), (1, 2), (4, 8), (3, 4)]),
    rows=st.integers(1, 5),
    groups=st.integers(1, 4),
    image=st.booleans(),
    seed=st.integers(0, 9),
)
def test_n_of_m_comes_back_exactly(counts: tuple[int, int], rows: int, groups: int, image: bool, seed: int) -> None:
    n, m = counts
    weight = holed((rows, groups * m, 3, 3) if image else (rows, groups * m), 0.1, seed)
    layer: nn.Module = nn.Conv2d(groups * m, rows, 3) if image else nn.Linear(groups * m, rows)
    layer.weight = nn.Parameter(weight)
    mask_(layer, PruneWeights(n_of_m=f"{n}:{m}").masks({"": layer}, 0)[""])
    assert isinstance(layer.weight, Tensor)
    with torch.no_grad():
        assert torch.equal(NofMWeight(layer.weight.detach(), n, m)(), layer.weight)


@settings(deadline=None, max_examples=60)
@given(
    sizes=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    block=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    zeros=st.floats(0, 1),
    bias=st.booleans(),
    seed=st.integers(0, 9),
)
def test_blocks_multiply_as_the_dense_weight_does(
    sizes: tuple[int, int], block: tuple[int, int], zeros: float, bias: bool, seed: int
) -> None:
    layer = nn.Linear(*sizes, bias=bias)
    layer.weight.data = holed((sizes[1], sizes[0]), zeros, seed)
    x = torch.randn(2, 3, sizes[0])
    torch.testing.assert_close(BlockLinear(layer, block)(x), layer(x), rtol=1e-4, atol=1e-5)


def pruned(step: PruneWeights, size: int = 64) -> nn.Sequential:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(size, size, bias=False))
    compress_(module, step, context=Context(inputs=()))
    return module


@pytest.mark.parametrize(
    ("prune", "step", "left"),
    [
        (PruneWeights(sparsity=0.75), Sparse(), 0.25 * 6 / 4 + 1 / 64),
        (PruneWeights(sparsity=0.75, block=(8, 8)), Sparse(layout="bsr", block=(8, 8), run="dense"), 0.25),
        (PruneWeights(n_of_m="2:4"), Sparse(layout="n_of_m", n_of_m="2:4"), 0.5 + 1 / 32),
    ],
)
def test_storage_shrinks_as_promised(prune: PruneWeights, step: Sparse, left: float) -> None:
    done = compress_(pruned(prune), step, context=Context(inputs=()))
    assert done.after / done.before == pytest.approx(left, abs=0.02)


def test_how_it_runs_is_measured_and_said() -> None:
    wide = PruneWeights(sparsity=0.9, block=(64, 16), among="row")
    module = pruned(wide, 512)
    dense = module[0]
    x = torch.randn(64, 512)
    expected = dense(x)
    done = compress_(module, Sparse(layout="bsr", block=(64, 16)), context=Context(inputs=()))
    assert isinstance(module[0], BlockLinear), done.changes[0].what
    assert "blocks at run time: blocks" in done.changes[0].what
    torch.testing.assert_close(module(x), expected, rtol=1e-4, atol=1e-4)


def test_dense_is_kept_where_blocks_are_slower() -> None:
    module = pruned(PruneWeights(sparsity=0.5, block=(2, 2)), 128)
    done = compress_(module, Sparse(layout="bsr", block=(2, 2), rows=256), context=Context(inputs=()))
    assert not isinstance(module[0], BlockLinear)
    assert "dense at run time: blocks" in done.changes[0].what


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_layers_in_other_floats_are_measured_in_them(dtype: torch.dtype) -> None:
    module = pruned(PruneWeights(sparsity=0.75, block=(16, 16), among="row")).to(dtype)
    x = torch.randn(5, 64).to(dtype)
    expected = module(x)
    done = compress_(module, Sparse(layout="bsr", block=(16, 16)), context=Context(inputs=()))
    assert "at run time: blocks" in done.changes[0].what
    torch.testing.assert_close(module(x), expected)


def test_the_fastest_is_the_fastest() -> None:
    class Waits(nn.Module):
        def __init__(self, rounds: int) -> None:
            super().__init__()
            self._rounds = rounds

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(self._rounds):
                x = x @ x
            return x

    found = fastest({"long": Waits(30), "short": Waits(3)}, torch.randn(64, 64))
    assert found.name == "short"
    assert found.seconds["short"] < found.seconds["long"] / 3


@pytest.mark.parametrize(
    ("steps", "reason"),
    [
        ((Sparse(),), "no layer gains by it; qkv: 0% zeros would take"),
        ((PruneWeights(sparsity=0.05), Sparse()), "no layer gains by it; qkv: 5% zeros would take"),
        ((Sparse(layout="n_of_m", n_of_m="2:4"),), "it is not 2:4"),
        ((PruneWeights(sparsity=0.9), Sparse(), ShareWeights()), '"share_weights" comes later and takes qkv too'),
        ((Sparse24(),), 'more than 2 of some 4 inputs are not zero; prune with n_of_m: "2:4" first'),
        ((PruneWeights(n_of_m="2:4"), Sparse24()), "runs on cuda, not on cpu"),
    ],
)
def test_what_gains_nothing_or_cannot_run_is_refused(
    steps: tuple[PruneWeights | Sparse | ShareWeights | Sparse24, ...], reason: str
) -> None:
    model = models.attention()
    with pytest.raises(InvalidRequest, match=reason):
        compress_(model.module, *steps, context=Context.of(model))


@pytest.mark.parametrize(
    "keys",
    [
        {"layout": "bsr"},
        {"block": (2, 2)},
        {"layout": "n_of_m"},
        {"n_of_m": "2:4"},
        {"layout": "csr", "run": "blocks"},
    ],
)
def test_keys_of_another_layout_are_refused(keys: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match="layout"):
        Sparse.model_validate(keys)


def test_a_later_quantization_of_the_same_layer_is_refused() -> None:
    model = models.attention()
    steps = (PruneWeights(sparsity=0.9), Sparse(layers=("up",)), read_step({"kind": "int8_dynamic"}))
    (problem,) = problems(model.module, steps, Context.of(model))
    assert '"int8_dynamic" comes later and takes up too' in problem


def test_2_of_4_for_a_gpu_without_one_says_so() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    (problem,) = problems(pruned(PruneWeights(n_of_m="2:4")), (Sparse24(),), Context(inputs=(), target="cuda"))
    assert "2 of 4 sparsity is computed on CUDA devices, and there is none here" in problem


def test_2_of_4_for_a_gpu_is_plain_in_the_artifact_and_cut_exactly(tmp_path: Path) -> None:
    model = models.attention()
    PruneWeights(n_of_m="2:4").apply_(model.module, Context.of(model))
    up = model.module.get_submodule("up")
    changes = Sparse24().apply_(model.module, Context.of(model, target="cuda"))
    assert [change.layer for change in changes] == ["qkv", "out", "up", "down"]
    (change,) = [change for change in changes if change.layer == "up"]
    assert change.after / stored_bytes(up) == pytest.approx(9 / 32, abs=0.02)  # fp32 becomes bf16
    x = torch.randn(5, 16)
    torch.testing.assert_close(model.module.get_submodule("up")(x), up(x), rtol=0.03, atol=0.03)
    assert_two_stages_give_what_the_whole_gives(model, tmp_path / "a")


@pytest.mark.parametrize(
    "steps",
    [
        (PruneWeights(sparsity=0.8), Sparse()),
        (PruneWeights(sparsity=0.5, block=(4, 4)), Sparse(layout="bsr", block=(4, 4), run="blocks")),
        (PruneWeights(n_of_m="2:4"), Sparse(layout="n_of_m", n_of_m="2:4")),
    ],
    ids=["csr", "blocks", "n_of_m"],
)
def test_a_sparse_model_is_captured_and_cut_exactly(tmp_path: Path, steps: tuple[PruneWeights, Sparse]) -> None:
    model = models.attention()
    compress_(model.module, *steps, context=Context.of(model))
    assert_two_stages_give_what_the_whole_gives(model, tmp_path / "a")


def test_a_sparse_convolution_is_captured_and_cut_exactly(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 8, 3))
    model = Model(module, (Input("image", torch.randn(2, 8, 6, 6), ("batch", None, None, None)),))
    before = stored_bytes(module)
    done = compress_(module, PruneWeights(sparsity=0.9), Sparse(), context=Context.of(model))
    assert done.after < 0.25 * before
    assert_two_stages_give_what_the_whole_gives(model, tmp_path / "c")
