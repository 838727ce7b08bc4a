"""A model served on a GPU, whole, in two stages, and beside a stage on the CPU: clients get what the CPU gives."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import tritonclient.grpc as triton

from compressor.package import package
from compressor.profiling.measure import cosine, tiled
from compressor.quantization.formats import Bf16, Int8Dynamic
from compressor.recipe_file import RecipeFile
from compressor.step import Step
from tests import models
from tests.shardline.serve_process import serve
from tests.shardline.test_serve_compressed import asked
from worker.artifact import load_artifact
from worker.model_yaml import ModelYaml, write_model_yaml
from worker.per_stage import of_each
from worker.shard import load_shard

pytestmark = pytest.mark.cuda

STEPS: dict[str, Step] = {"bf16": Bf16(), "int8": Int8Dynamic()}
PLACES: dict[str, dict[str, Any]] = {
    "a whole GPU that Ray counts": {"stages": 1, "device": "cuda"},
    "both stages on one GPU": {"stages": 2, "device": "cuda:0"},
    "a CPU, then a GPU": {"stages": 2, "device": ("cpu", "cuda:0")},
    "a GPU, then a CPU": {"stages": 2, "device": ("cuda:0", "cpu")},
}


@pytest.fixture(scope="module", params=list(STEPS))
def artifact(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tests.models.attention` compiled for a GPU, with a key as a user's machine has one."""
    steps = RecipeFile(steps=(STEPS[request.param],))
    out = tmp_path_factory.mktemp(request.param) / "attention"
    return package(models.attention(), out, compression=steps, stages=(1, 2), device="cuda:0")


@pytest.mark.parametrize("place", list(PLACES))
def test_clients_get_from_a_gpu_what_the_cpu_gives(artifact: Path, place: str, tmp_path: Path) -> None:
    repository = tmp_path / "models"
    shutil.copytree(artifact, repository / "attention" / "1")
    write_model_yaml(repository / "attention" / "model.yaml", ModelYaml(cpus=0.5, **PLACES[place]))
    inputs = [tiled(item.example, [7, *item.example.shape[1:]]) for item in models.attention().inputs]
    expected = load_shard(load_artifact(artifact), stage=0, stages=1, runtime="eager").run(tuple(inputs))
    with serve(repository, tmp_path / "state", within_s=180) as cluster:
        with triton.InferenceServerClient(cluster.url) as client:
            found = client.infer("attention", asked(models.attention(), inputs), client_timeout=30)
        replicas = [cluster.replicas(stage) for stage in range(PLACES[place]["stages"])]
    devices = of_each(PLACES[place]["device"], PLACES[place]["stages"])
    for device, (replica,) in zip(devices, replicas, strict=True):
        assert device == "cpu" or not replica["note"], "what is compiled for the GPU is not used"
    (name,) = [output.name for output in found.get_response().outputs]
    assert cosine(torch.from_numpy(found.as_numpy(name).copy()), expected[0]) > 0.999
