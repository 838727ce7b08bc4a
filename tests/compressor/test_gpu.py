"""What only a GPU can show: every step's kernels there, compiled and not, and that wrong ones are not taken."""

from pathlib import Path
from typing import Literal

import pytest
import torch

from compressor.package import package
from compressor.profiling.kernel_check import kernel_problem
from compressor.profiling.measure import cosine
from compressor.pruning.prune_weights import PruneWeights
from compressor.quantization.formats import Bf16, Fp8, Fp16, Int4WeightOnly, Int8Dynamic, Int8WeightOnly
from compressor.quantization.short_floats import Fp8Linear
from compressor.recipe_file import RecipeFile
from compressor.sparsity.sparse import Sparse
from compressor.sparsity.sparse_gpu import Sparse24
from compressor.step import Step
from tests import models
from worker.artifact import Artifact, load_artifact
from worker.gpu import FP8, lacks
from worker.shard import load_shard

pytestmark = pytest.mark.cuda

DEVICE = "cuda:0"
STEPS: dict[str, tuple[Step, ...]] = {
    "none": (),
    "bf16": (Bf16(),),
    "fp16": (Fp16(),),
    "fp8": (Fp8(),),
    "int8_dynamic": (Int8Dynamic(),),
    "int8_weight_only": (Int8WeightOnly(),),
    "int4_weight_only": (Int4WeightOnly(),),
    "sparse": (PruneWeights(sparsity=0.8), Sparse()),
    "sparse_2_4": (PruneWeights(n_of_m="2:4"), Sparse24()),
}


@pytest.fixture(scope="module", params=list(STEPS))
def artifact(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, machine_key: Path) -> Artifact:
    """`tests.models.attention` after the steps, whole and cut in two, compiled for the GPU."""
    name: str = request.param
    if name == "fp8" and (problem := lacks(*FP8, DEVICE)):
        pytest.skip(problem)
    if name == "sparse_2_4" and (problem := Sparse24().device_problem(DEVICE)):
        pytest.skip(problem)
    compression = RecipeFile(steps=STEPS[name]) if STEPS[name] else None
    out = tmp_path_factory.mktemp(name) / "model"
    model = models.attention()
    return load_artifact(
        package(model, out, compression=compression, stages=(1, 2), device=DEVICE, key=machine_key, progress=print)
    )


def ids(rows: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    drawn = torch.randint(1, 50, (rows, length), generator=torch.Generator().manual_seed(rows))
    return drawn, torch.ones_like(drawn)


@pytest.mark.parametrize("runtime", ["eager", "fastest"])
@pytest.mark.parametrize("stages", [1, 2])
def test_an_artifact_for_the_gpu_gives_there_what_it_gives_on_the_cpu(
    artifact: Artifact, stages: int, runtime: Literal["eager", "fastest"], machine_key: Path
) -> None:
    here = [load_shard(artifact, stage=index, stages=stages, runtime="eager") for index in range(stages)]
    there = [
        load_shard(artifact, stage=index, stages=stages, device=DEVICE, runtime=runtime, key=machine_key)
        for index in range(stages)
    ]
    assert not any(shard.note for shard in there), [shard.note for shard in there]
    for rows, length in ((1, 1), (1, 16), (5, 9), (33, 20)):
        found: tuple[torch.Tensor, ...] = ids(rows, length)
        expected: tuple[torch.Tensor, ...] = ids(rows, length)
        for near, far in zip(here, there, strict=True):
            expected, found = near.run(expected), far.run(found)
        assert cosine(found[0], expected[0]) > 0.999, (rows, length)


def test_what_is_compiled_for_the_gpu_runs_there_and_is_right(artifact: Artifact) -> None:
    (stage,) = artifact.manifest.cut_into(1).stages  # type: ignore[union-attr]
    compiled = [figure for figure in stage.figures if figure.runtime == "aotinductor"]
    assert compiled, "the compiler gave nothing; packaging said why"
    assert all(figure.correct for figure in compiled), compiled
    steps = artifact.manifest.recipe.compression.steps if artifact.manifest.recipe.compression else ()
    assert any(figure.sparse_units for figure in compiled) == any(step["kind"] == "sparse_2_4" for step in steps)


def test_a_kernel_of_the_gpu_is_tried_before_any_work() -> None:
    assert Int8Dynamic().device_problem(DEVICE) is None
    assert lacks("tomorrow's format", (99, 0), DEVICE) is not None
    told = kernel_problem(lambda _: Fp8Linear(torch.nn.Linear(60, 32)), DEVICE, tolerance=0.1)
    assert told is not None
    assert told.startswith(f"{DEVICE} does not compute it: ")
