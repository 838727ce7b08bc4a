from pathlib import Path

import pytest
import torch
from torch import nn

from compressor.capture import capture
from compressor.compress import compress_
from compressor.model import Input, Model
from compressor.package import package
from compressor.packaging.compile import compiler_problem
from compressor.packaging.decoded import decoded
from compressor.profiling.measure import example_inputs
from compressor.pruning.prune_weights import PruneWeights
from compressor.quantization.formats import Int4WeightOnly, Int8Dynamic
from compressor.quantization.quantize import operator_name
from compressor.recipe_file import RecipeFile
from compressor.sparsity.sparse import Sparse
from compressor.step import Context, Step
from tests import models
from worker.artifact import load_artifact
from worker.program import Program
from worker.runtime import Eager
from worker.shard import load_shard


def linear(width: int = 24, out: int = 40) -> Model:
    """x FP32 [batch, length, width] → [batch, length, width]."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(width, out), nn.ReLU(), nn.Linear(out, width, bias=False))
    return Model(module, (Input("x", torch.randn(2, 3, width), ("batch", "length", None)),))


def image() -> Model:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 8, 3))
    return Model(module, (Input("image", torch.randn(2, 8, 6, 6), ("batch", None, None, None)),))


def captured(model: Model, folder: Path, *steps: Step) -> Program:
    compress_(model.module, *steps, context=Context.of(model))
    return capture(model, folder / "program.pt2")


BLOCKS = PruneWeights(sparsity=0.6, block=(8, 8))


@pytest.mark.parametrize(
    ("model", "steps"),
    [
        (linear(), (PruneWeights(sparsity=0.8), Sparse())),
        (linear(), (PruneWeights(n_of_m="2:4"), Sparse(layout="n_of_m", n_of_m="2:4"))),
        (linear(), (BLOCKS, Sparse(layout="bsr", block=(8, 8), run="dense"))),
        (linear(), (BLOCKS, Sparse(layout="bsr", block=(8, 8), run="blocks"))),
        (linear(21, 37), (BLOCKS, Sparse(layout="bsr", block=(8, 8), run="blocks"))),
        (image(), (PruneWeights(sparsity=0.9), Sparse())),
        (models.attention(), (PruneWeights(sparsity=0.8), Sparse())),
    ],
    ids=["csr", "n_of_m", "bsr", "blocks", "blocks that do not fit", "convolutions", "attention"],
)
def test_a_decoded_stage_gives_what_the_sparse_one_gives_without_its_work(
    model: Model, steps: tuple[Step, ...], tmp_path: Path
) -> None:
    sparse = captured(model, tmp_path, *steps)
    dense = decoded(sparse)
    assert dense is not None
    assert len(dense.steps) < len(sparse.steps)
    left = {operator_name(step) for step in dense.steps}
    assert not left & {"aten::scatter", "aten::index_copy", "aten::bmm", "aten::scatter_add", "aten::cumsum"}
    inputs = example_inputs(sparse, dict.fromkeys(sparse.hints, 5), [item.example for item in model.inputs])
    for found, expected in zip(Eager(dense).run(inputs), Eager(sparse).run(inputs), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("steps", [(), (Int8Dynamic(),), (Int4WeightOnly(),)])
def test_a_stage_without_sparse_layers_is_left_alone(steps: tuple[Step, ...], tmp_path: Path) -> None:
    model = linear()
    program = captured(model, tmp_path, *steps) if steps else capture(model, tmp_path / "program.pt2")
    assert decoded(program) is None


@pytest.mark.slow
def test_a_compiled_stage_is_sparse_or_dense_by_what_was_measured_and_the_manifest_says_which(
    tmp_path: Path, machine_key: Path
) -> None:
    problem = compiler_problem()
    if problem:
        pytest.skip(problem)
    recipe = RecipeFile(steps=(PruneWeights(sparsity=0.9), Sparse()))
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 256))
    model = Model(module, (Input("x", torch.randn(2, 256), ("batch", None)),))
    artifact = load_artifact(package(model, tmp_path / "sparse", compression=recipe, stages=(1,), key=machine_key))
    (cut,) = artifact.manifest.cuts
    (stage,) = cut.stages
    (dense,) = [figure for figure in stage.figures if figure.decoded]
    (sparse,) = [figure for figure in stage.figures if figure.frozen and not figure.decoded]
    assert dense.correct
    assert sparse.correct
    # Decoding at each call is many times the work of products with so few rows: only dense can have won.
    assert all(dense.seconds[label] < sparse.seconds[label] for label in dense.seconds)
    (compiled,) = stage.compiled
    assert compiled.file.endswith("-decoded.pt2")
    assert [name for name in artifact.manifest.files if name.startswith("stages/")] == [compiled.file]
    x = torch.randn(7, 256)
    shard = load_shard(artifact, stage=0, stages=1, key=machine_key)
    assert shard.runtime == "aotinductor"
    with torch.no_grad():
        torch.testing.assert_close(shard.run([x])[0], model.module(x), rtol=1e-4, atol=1e-5)
