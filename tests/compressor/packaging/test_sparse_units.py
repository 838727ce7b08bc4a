"""Stages on a GPU's sparse units. What can be shown without one: all but cuSPARSELt's own kernels."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from compressor.capture import capture
from compressor.model import Input, Model
from compressor.packaging.compile import compile_stage, compiler_problem
from compressor.packaging.sparse_units import sparse_product, with_sparse_units
from compressor.pruning.prune_weights import PruneWeights
from compressor.quantization.quantize import operator_name
from compressor.sparsity.sparse_gpu import Sparse24
from compressor.step import Context, Step
from tests.compressor.packaging.cusparselt import cusparselt_on_cpu
from worker.errors import Unsupported
from worker.operators import OperatorError, resolve
from worker.program import Program
from worker.runtime import Aot, Eager


@pytest.fixture
def cusparselt() -> Iterator[None]:
    with cusparselt_on_cpu():
        yield


def captured(folder: Path, *steps: Step, dtype: torch.dtype = torch.float32) -> Program:
    """x [batch, length, 64] → [batch, length, 32]; the steps leave the second of three layers alone."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 64), nn.Linear(64, 32, bias=False)).to(dtype)
    model = Model(module, (Input("x", torch.randn(2, 3, 64, dtype=dtype), ("batch", "length", None)),))
    for step in steps:
        assert step.apply_(module, Context.of(model))
    return capture(model, folder / "program.pt2")


PRUNED = (PruneWeights(n_of_m="2:4", layers=("0", "3")), Sparse24(layers=("0", "3")))


@pytest.mark.usefixtures("cusparselt")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_sparse_layers_are_packed_once_and_give_the_dense_product(dtype: torch.dtype, tmp_path: Path) -> None:
    plain = captured(tmp_path, *PRUNED, dtype=dtype)
    units = with_sparse_units(plain, "cpu")
    assert units is not None
    names = [operator_name(step) for step in units.steps]
    assert [step.operator for step in units.steps].count(sparse_product) == 2
    assert names.count("aten::linear") == 1
    assert "aten::scatter" not in names
    assert sorted(tuple(weight.shape) for name, weight in units.weights.items() if name.endswith("packed")) == [
        (32, 36),
        (96, 36),
    ]
    for rows, length in ((1, 1), (2, 3), (4, 8)):
        x = torch.randn(rows, length, 64).to(dtype)
        ((found,), (expected,)) = Eager(units).run((x,)), Eager(plain).run((x,))
        torch.testing.assert_close(found, expected, rtol=0.05, atol=0.02)


@pytest.mark.slow
@pytest.mark.usefixtures("cusparselt")
def test_a_stage_on_sparse_units_compiles_and_runs_at_sizes_never_traced(tmp_path: Path) -> None:
    if problem := compiler_problem():
        pytest.skip(problem)
    plain = captured(tmp_path, *PRUNED)
    units = with_sparse_units(plain, "cpu")
    assert units is not None
    compile_stage(units, tmp_path / "units.pt2", frozen=True)
    compiled = Aot(tmp_path / "units.pt2")
    for rows, length in ((1, 1), (1, 13), (5, 8)):
        x = torch.randn(rows, length, 64)
        ((found,), (expected,)) = compiled.run((x,)), Eager(plain).run((x,))
        torch.testing.assert_close(found, expected, rtol=0.05, atol=0.02)


@pytest.mark.parametrize(
    ("steps", "dtype"),
    [
        ((), torch.bfloat16),
        ((PruneWeights(n_of_m="2:4"),), torch.float32),
        ((PruneWeights(sparsity=0.3),), torch.bfloat16),
    ],
    ids=["dense", "of 32 bits", "zeros anywhere"],
)
def test_a_stage_without_2_of_4_in_16_bits_is_left_alone(
    steps: tuple[Step, ...], dtype: torch.dtype, tmp_path: Path
) -> None:
    assert with_sparse_units(captured(tmp_path, *steps, dtype=dtype), "cpu") is None


def test_a_device_that_cannot_pack_says_why(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="cpu cannot pack 2 of 4 sparse weights: Could not run"):
        with_sparse_units(captured(tmp_path, *PRUNED), "cpu")


@pytest.mark.parametrize("name", ["_cslt_compress", "_cslt_sparse_mm"])
def test_a_program_may_not_name_operators_that_trust_their_arguments(name: str) -> None:
    with pytest.raises(OperatorError, match="does not check what it is given"):
        resolve(f"torch.ops.aten.{name}.default")
