"""Every family of compression, cut in two and served: what clients get is what the compressed module gives here."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from torch import Tensor

from cluster.route_table import signature_message
from compressor.capture import Flat
from compressor.compress import compress_
from compressor.model import Input, Model
from compressor.package import package
from compressor.profiling.measure import tiled
from compressor.recipe_file import RecipeFile, recipe_of
from compressor.training.training_data import Rows
from gateway.server import Gateway
from protos import control_pb2 as pb
from tests import models
from tests.compressor.pruning.test_prune_heads import decoder
from tests.compressor.pruning.test_prune_layers import stack
from tests.compressor.quantization.test_int8_static import Block
from tests.shardline.serve_process import serve, wait_for
from worker.artifact import Artifact, load_artifact
from worker.link import Link
from worker.model_yaml import ModelYaml, write_model_yaml
from worker.shard import load_shard
from worker.stream_server import StreamServer
from worker.worker import Worker

HERE = "tests.shardline.test_serve_compressed"
TOKEN = "a token for tests"
LINEAR = ["qkv", "out", "up", "down"]


def convolutions() -> Model:
    """image FP32 [batch, 3, 8, 8] → [batch, 4]."""
    return Model(Block(), (Input("image", torch.randn(2, 3, 8, 8), ("batch", None, None, None)),))


def images() -> list[Tensor]:
    return [torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(1))]


def labelled_images() -> Rows:
    (inputs,) = images()
    return Rows((inputs,), torch.arange(8) % 4, rows=8)


@dataclass(frozen=True)
class Family:
    """A model, and the recipe that compresses it."""

    model: Callable[[], Model]
    steps: list[dict[str, object]]
    calibration: str | None = None
    training: str | None = None

    @property
    def recipe(self) -> RecipeFile:
        return recipe_of({"steps": self.steps, "calibration": self.calibration, "training": self.training, "seed": 5})


FAMILIES = {
    "int8_dynamic": Family(models.attention, [{"kind": "int8_dynamic", "layers": LINEAR}]),
    "int8_static": Family(convolutions, [{"kind": "int8_static"}], calibration=f"{HERE}:images"),
    "short_floats": Family(models.attention, [{"kind": "bf16", "layers": LINEAR}]),
    "weight_only": Family(
        models.attention,
        [
            {"kind": "int4_weight_only", "layers": ["qkv"]},
            {"kind": "ternary", "layers": ["up", "down"]},
            {"kind": "binary", "layers": ["embedding"]},
        ],
    ),
    "pruned_channels": Family(convolutions, [{"kind": "prune_channels", "share": 0.5}]),
    "pruned_neurons": Family(models.attention, [{"kind": "prune_neurons", "share": 0.5}]),
    "pruned_heads": Family(decoder, [{"kind": "prune_heads", "share": 0.5}]),
    "pruned_layers": Family(stack, [{"kind": "prune_layers", "count": 2}]),
    "low_rank": Family(models.attention, [{"kind": "low_rank", "rank": 4, "multiple": 1, "layers": LINEAR}]),
    "shared_weights": Family(models.attention, [{"kind": "share_weights", "bits": 4}]),
    "sparse": Family(
        models.attention,
        [
            {"kind": "prune_weights", "sparsity": 0.8, "layers": ["embedding", "out", "qkv"]},
            {"kind": "prune_weights", "sparsity": 0.75, "block": [8, 8], "layers": ["up", "down"]},
            {"kind": "sparse", "layers": ["out", "qkv"]},
            {"kind": "sparse", "layout": "bsr", "block": [8, 8], "run": "blocks", "layers": ["up", "down"]},
        ],
    ),
    "distilled": Family(
        convolutions,
        [{"kind": "prune_channels", "share": 0.5}, {"kind": "distill", "epochs": 3}],
        training=f"{HERE}:labelled_images",
    ),
    "fine_tuned_int8": Family(
        convolutions,
        [{"kind": "prune_channels", "share": 0.5}, {"kind": "fine_tune", "epochs": 3}, {"kind": "int8_static"}],
        calibration=f"{HERE}:images",
        training=f"{HERE}:labelled_images",
    ),
}


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact of each family, uncompiled, cut into two."""
    folder = tmp_path_factory.mktemp("models")
    settings = ModelYaml(stages=2, cpus=0.05, runtime="eager")
    for name, family in FAMILIES.items():
        package(family.model(), folder / name, compression=family.recipe, stages=(2,), runtime="eager")
        write_model_yaml(folder / name / "model.yaml", settings)
    return folder


def inputs_of(model: Model) -> list[Tensor]:
    """Five rows: a batch that no capture has seen."""
    return [tiled(item.example, [5, *item.example.shape[1:]]) for item in model.inputs]


def answers_here(family: Family, inputs: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """What the module gives in this process, compressed by the same recipe, and as it was."""
    model = family.model()
    with torch.no_grad():
        plain = Flat(model.module.eval())(*inputs)
        made = compress_(model.module, *family.recipe.steps, context=family.recipe.context(model))
        return list(Flat(made.module.eval())(*inputs)), list(plain)


def asked(model: Model, inputs: list[Tensor]) -> list[triton.InferInput]:
    given = []
    for item, tensor in zip(model.inputs, inputs, strict=True):
        datatype = "INT64" if tensor.dtype == torch.int64 else "FP32"
        given.append(triton.InferInput(item.name, list(tensor.shape), datatype))
        given[-1].set_data_from_numpy(tensor.numpy())
    return given


def check(name: str, inputs: list[Tensor], found: list[np.ndarray]) -> None:
    expected, plain = answers_here(FAMILIES[name], inputs)
    assert len(found) == len(expected)
    for tensor, wanted, uncompressed in zip(found, expected, plain, strict=True):
        torch.testing.assert_close(torch.from_numpy(tensor.copy()), wanted, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(wanted, uncompressed, rtol=1e-5, atol=1e-5), "compression changed nothing"


@asynccontextmanager
async def worker_of(artifact: Artifact, stage: int, link: Link | None) -> AsyncIterator[str]:
    """One stage behind its door; its host:port."""
    shard = load_shard(artifact, stage=stage, stages=2)
    worker = Worker(shard, outputs=artifact.manifest.signature.outputs, link=link)
    server = StreamServer(TOKEN, worker.serve, worker.load)
    computing = asyncio.create_task(worker.run_forever())
    try:
        yield await server.start()
    finally:
        await server.stop()
        computing.cancel()
        await asyncio.gather(computing, return_exceptions=True)


@asynccontextmanager
async def pipeline_of(name: str, artifact: Artifact) -> AsyncIterator[pb.ModelRoute]:
    """Two workers on sockets of their own, the first of which knows the second; what leads to the first."""
    link = Link(TOKEN)
    async with worker_of(artifact, 1, None) as last, worker_of(artifact, 0, link) as first:
        link.route({"1": last})
        try:
            yield pb.ModelRoute(
                model=name,
                version="1",
                ready=True,
                signature=signature_message(artifact.manifest.signature),
                replicas=[pb.Replica(id="0", address=first)],
                limits=pb.Limits(
                    max_batch_rows=16, default_deadline_s=30, max_inflight=8, max_inflight_per_replica=8, batched=True
                ),
            )
        finally:
            await link.close()


async def test_each_family_answers_through_two_stages_and_the_gateway_as_it_does_here(repository: Path) -> None:
    async with AsyncExitStack() as stack_of, Gateway("127.0.0.1:0") as gateway:
        routes = [
            await stack_of.enter_async_context(pipeline_of(name, load_artifact(repository / name / "1")))
            for name in FAMILIES
        ]
        gateway.apply(pb.RouteTable(generation=1, models=routes), TOKEN)
        async with triton_aio.InferenceServerClient(f"127.0.0.1:{gateway.port}") as client:
            for name, family in FAMILIES.items():
                model = family.model()
                inputs = inputs_of(model)
                result = await client.infer(name, asked(model, inputs))
                check(name, inputs, [result.as_numpy(output.name) for output in result.get_response().outputs])


@pytest.mark.parametrize("name", FAMILIES)
def test_both_stages_compute_and_the_manifest_says_how_the_artifact_was_made(repository: Path, name: str) -> None:
    manifest = load_artifact(repository / name / "1").manifest
    (cut,) = manifest.cuts
    assert len(cut.stages) == 2
    assert all(None in stage.passed for stage in cut.stages)
    made = manifest.recipe.compression
    assert made is not None
    assert [step["kind"] for step in made.steps] == [step["kind"] for step in FAMILIES[name].steps]


@pytest.fixture(scope="module")
def served(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serve(repository, tmp_path_factory.mktemp("serve") / "state", within_s=300) as cluster:
        yield cluster.url


@pytest.mark.slow
def test_one_serve_of_every_family_answers_as_the_modules_do_here(served: str) -> None:
    with triton.InferenceServerClient(served) as client:
        for name, family in FAMILIES.items():
            wait_for(f"{name} is ready", partial(client.is_model_ready, name))
            model = family.model()
            inputs = inputs_of(model)
            result = client.infer(name, asked(model, inputs), client_timeout=30)
            check(name, inputs, [result.as_numpy(output.name) for output in result.get_response().outputs])
