"""Loading a stage: the right runtime where it can be trusted, and a stage that works in any case."""

import gc
import json
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from compressor.package import package
from tests import models
from worker.artifact import Artifact, ArtifactError, file_entry, load_artifact
from worker.errors import InvalidRequest, Unsupported
from worker.manifest import MANIFEST
from worker.runtime import Runtime
from worker.seal import make_key, read_key, seal
from worker.shard import Shard, load_shard

IDS = torch.randint(1, 50, (3, 7), generator=torch.Generator().manual_seed(3))
INPUTS = (IDS, torch.ones_like(IDS))


def run_all(shards: list[Shard], inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    for shard in shards:
        inputs = shard.run(inputs)
    return inputs


def copied(artifact: Artifact, target: Path, change: Callable[[Any], None] = lambda _: None) -> Artifact:
    """A copy whose manifest was changed and whose hashes are right again, as someone who means harm would make it."""
    folder = Path(shutil.copytree(artifact.folder, target / "1"))
    document = json.loads((folder / MANIFEST).read_text())
    change(document)
    document["files"] = {
        name: file_entry(folder / name).model_dump() for name in document["files"] if (folder / name).is_file()
    }
    (folder / MANIFEST).write_text(json.dumps(document))
    return load_artifact(folder)


def compiled_entries(document: Any) -> list[Any]:
    return [entry for cut in document["cuts"] for stage in cut["stages"] for entry in stage["compiled"]]


def fallen_back(artifact: Artifact, key: Path) -> str:
    """The note of stage 0, after checking that it runs uncompiled and right."""
    shards = [load_shard(artifact, stage=stage, stages=2, key=key) for stage in range(2)]
    reference = [load_shard(artifact, stage=stage, stages=2, runtime="eager", key=key) for stage in range(2)]
    assert shards[0].runtime == "eager"
    if shards[1].runtime == "eager":
        assert torch.equal(run_all(shards, INPUTS)[0], run_all(reference, INPUTS)[0])
    assert "`shardline compile`" in shards[0].note
    return shards[0].note


@pytest.fixture
def always_compiled(compiled: Artifact) -> Artifact:
    """The artifact, where stage 0 was fastest compiled; elsewhere there is nothing to try."""
    if not compiled.manifest.cuts[0].stages[0].compiled:
        pytest.skip("on this machine stage 0 is faster uncompiled")
    return compiled


def test_an_uncompiled_stage_says_how_to_mend_that(toy_folder: Path) -> None:
    shard = load_shard(load_artifact(toy_folder), stage=0, stages=2)
    assert shard.runtime == "eager"
    assert "`shardline compile`" in shard.note
    assert load_shard(load_artifact(toy_folder), stage=0, stages=2, runtime="eager").note == ""


HOST = """
import sys, torch
from pathlib import Path
from worker.artifact import load_artifact
from worker.shard import load_shard
shard = load_shard(load_artifact(Path(sys.argv[1])), stage=0, stages=2, key=Path(sys.argv[2]))
ids = torch.ones((3, 7), dtype=torch.int64)
shard.run((ids, ids))
print(shard.runtime, *sorted({"torch._dynamo", "torch._inductor"} & set(sys.modules)))
"""


def test_a_stage_is_hosted_without_the_compiler_s_modules(always_compiled: Artifact, machine_key: Path) -> None:
    """They take seconds to load, and every worker would wait for them before it can serve."""
    hosting = [sys.executable, "-c", HOST, str(always_compiled.folder), str(machine_key)]
    done = subprocess.run(hosting, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["aotinductor"]


@pytest.mark.parametrize("stages", [1, 2, 3, 4])
def test_stages_give_what_the_module_gives_however_many(toy_folder: Path, stages: int) -> None:
    artifact = load_artifact(toy_folder)
    shards = [load_shard(artifact, stage=stage, stages=stages, runtime="eager") for stage in range(stages)]
    inputs = (torch.randn(5, 9, 8), torch.randn(5, 9, 8))
    for one, other in zip(run_all(shards, inputs), models.toy().module(*inputs), strict=True):
        assert torch.equal(one, other)


def test_signatures_chain_from_the_programs_inputs_to_its_outputs(toy_folder: Path) -> None:
    artifact = load_artifact(toy_folder)
    first, second = (load_shard(artifact, stage=stage, stages=2).signature for stage in range(2))
    assert first.inputs == artifact.manifest.signature.inputs
    assert first.outputs == second.inputs
    assert second.outputs == artifact.manifest.signature.outputs
    assert first.axes == artifact.manifest.signature.axes
    assert all(spec.shape[0] == "batch" for spec in (*first.outputs, *second.outputs))


def test_a_tensor_that_is_only_passed_on_is_not_copied(toy_folder: Path) -> None:
    artifact = load_artifact(toy_folder)
    shards = [load_shard(artifact, stage=stage, stages=4) for stage in range(4)]
    inputs: tuple[torch.Tensor, ...] = (torch.randn(2, 3, 8), torch.randn(2, 3, 8))
    shared = 0
    for shard in shards:
        outputs = shard.run(inputs)
        shared += sum(any(out is given for given in inputs) for out in outputs)
        inputs = outputs
    assert shared > 0


def test_a_model_that_computes_nothing_is_served(tmp_path: Path) -> None:
    artifact = load_artifact(package(models.identity(), tmp_path / "identity", runtime="eager"))
    shard = load_shard(artifact, stage=0, stages=1)
    given = torch.randn(4, 2)
    assert shard.run((given,))[0] is given
    assert shard.note == ""
    with pytest.raises(InvalidRequest, match="cannot be cut into 2 stages"):
        load_shard(artifact, stage=0, stages=2)


@pytest.mark.parametrize(("stage", "stages"), [(-1, 1), (1, 1), (0, 0), (0, 99)])
def test_a_stage_that_is_not_there_is_refused(toy_folder: Path, stage: int, stages: int) -> None:
    with pytest.raises(InvalidRequest):
        load_shard(load_artifact(toy_folder), stage=stage, stages=stages)


def test_a_wrong_number_of_tensors_is_refused(toy_folder: Path) -> None:
    with pytest.raises(InvalidRequest, match="1 tensors; the stage takes 2"):
        load_shard(load_artifact(toy_folder), stage=0, stages=1).run((torch.ones(1),))


@pytest.mark.parametrize("device", ["cuda:7", "tpu", "cpu:1", "cuda:-1", ""])
def test_a_device_that_is_not_there_is_refused(toy_folder: Path, device: str) -> None:
    with pytest.raises(Unsupported, match=f"device {device!r}"):
        load_shard(load_artifact(toy_folder), stage=0, stages=1, device=device)


def test_a_program_that_is_not_the_manifests_is_refused(toy_folder: Path, tmp_path: Path) -> None:
    def swap(document: Any) -> None:
        document["inputs"][0]["shape"] = ["batch", "length", 9]

    with pytest.raises(ArtifactError, match=r"'left' is FP32 \['batch', 'length', 8\]"):
        load_shard(copied(load_artifact(toy_folder), tmp_path, swap), stage=0, stages=1)


def test_a_compiled_stage_is_near_the_uncompiled_one(always_compiled: Artifact, machine_key: Path) -> None:
    for stage in range(2):
        load_shard(always_compiled, stage=stage, stages=2, key=machine_key)
    fast = [load_shard(always_compiled, stage=stage, stages=2, key=machine_key) for stage in range(2)]
    slow = [load_shard(always_compiled, stage=stage, stages=2, runtime="eager") for stage in range(2)]
    assert fast[0].runtime == "aotinductor"
    assert fast[0].note == ""
    for batch, length in ((1, 1), (2, 5), (7, 33)):
        ids = torch.randint(1, 50, (batch, length))
        inputs = (ids, torch.ones_like(ids))
        torch.testing.assert_close(run_all(fast, inputs)[0], run_all(slow, inputs)[0], rtol=0.1, atol=0.05)


def test_answers_outlive_the_compiled_stage_that_gave_them(always_compiled: Artifact, machine_key: Path) -> None:
    stage = load_shard(always_compiled, stage=0, stages=2, key=machine_key)
    answers = stage.run(INPUTS)
    kept = [answer.clone() for answer in answers]
    del stage
    gc.collect()
    load_shard(always_compiled, stage=1, stages=2, key=machine_key)  # takes the memory that was freed
    assert all(map(torch.equal, answers, kept))


def test_python_goes_on_while_a_compiled_stage_computes(always_compiled: Artifact, machine_key: Path) -> None:
    stage = load_shard(always_compiled, stage=0, stages=2, key=machine_key)
    ids = torch.randint(1, 50, (512, 256))
    stage.run((ids, torch.ones_like(ids)))
    computing = threading.Thread(target=stage.run, args=((ids, torch.ones_like(ids)),))
    computing.start()
    rounds = 0
    while computing.is_alive():
        computing.join(0.001)
        rounds += 1
    assert rounds >= 10, "a run that held the interpreter would have let this go round once before it and once after"


def test_a_package_for_another_instruction_set_is_not_used(
    always_compiled: Artifact, machine_key: Path, tmp_path: Path
) -> None:
    def change(document: Any) -> None:
        for entry in compiled_entries(document):
            entry["instruction_set"] = "riscv64 V 000000000000"

    assert "compiled for riscv64 V" in fallen_back(copied(always_compiled, tmp_path, change), machine_key)


def test_a_package_for_another_torch_is_not_used(always_compiled: Artifact, machine_key: Path, tmp_path: Path) -> None:
    def change(document: Any) -> None:
        for entry in compiled_entries(document):
            entry["torch"] = "9.9.9"

    assert "compiled for PyTorch 9.9.9" in fallen_back(copied(always_compiled, tmp_path, change), machine_key)


def test_a_package_for_another_device_is_not_used(always_compiled: Artifact, machine_key: Path, tmp_path: Path) -> None:
    def change(document: Any) -> None:
        for entry in compiled_entries(document):
            entry["device"] = "cuda"

    assert "no package is compiled for cpu" in fallen_back(copied(always_compiled, tmp_path, change), machine_key)


def test_native_code_without_this_machines_seal_is_never_loaded(
    always_compiled: Artifact, machine_key: Path, tmp_path: Path
) -> None:
    """The package is replaced by something that would fail loudly if it were loaded, with all hashes made right."""

    def change(document: Any) -> None:
        for entry in compiled_entries(document):
            (tmp_path / "1" / entry["file"]).write_bytes(b"not native code at all")

    assert "its seal does not hold" in fallen_back(copied(always_compiled, tmp_path, change), machine_key)


def test_a_package_that_cannot_be_loaded_here_is_not_used(
    always_compiled: Artifact, machine_key: Path, tmp_path: Path
) -> None:
    """One that this machine vouches for, with a library that its loader refuses."""
    secret = read_key(machine_key)
    assert secret is not None

    def change(document: Any) -> None:
        for entry in compiled_entries(document):
            file = tmp_path / "1" / entry["file"]
            with zipfile.ZipFile(file, "w") as archive:
                archive.writestr("stage/data/aotinductor/model/stage.so", b"made for another C library")
            about = {key: entry[key] for key in ("device", "instruction_set", "torch")}
            entry["seal"] = seal(secret, sha256=file_entry(file).sha256, **about)

    assert "cannot be loaded here" in fallen_back(copied(always_compiled, tmp_path, change), machine_key)


def test_a_machine_without_a_key_runs_uncompiled(always_compiled: Artifact, tmp_path: Path) -> None:
    assert "has no key" in fallen_back(always_compiled, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_machine_with_another_key_runs_uncompiled(always_compiled: Artifact, tmp_path: Path) -> None:
    make_key(tmp_path / "key")
    assert "its seal does not hold" in fallen_back(always_compiled, tmp_path / "key")


def test_a_key_that_others_can_read_vouches_for_nothing(
    always_compiled: Artifact, machine_key: Path, tmp_path: Path
) -> None:
    key = tmp_path / "key"
    shutil.copy(machine_key, key)
    key.chmod(0o644)
    shard = load_shard(always_compiled, stage=0, stages=2, key=key)
    assert shard.runtime == "eager"
    assert "chmod 600" in shard.note


class Refuses:
    """A compiled package that does not hold for any size."""

    name = "aotinductor"

    def run(self, inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        raise RuntimeError("Expected Ne(s21, s21*s22) to be True but received 1")


def test_sizes_that_compiled_code_does_not_hold_for_are_computed_uncompiled(compiled: Artifact) -> None:
    eager = load_shard(compiled, stage=0, stages=2, runtime="eager")
    loads = 0

    def uncompiled() -> Runtime:
        nonlocal loads
        loads += 1
        return eager._runtime

    entry = compiled.manifest.cuts[0].stages[0]
    shard = Shard(entry, compiled.manifest.signature, Refuses(), uncompiled=uncompiled)
    for _ in range(2):
        assert all(map(torch.equal, shard.run(INPUTS), eager.run(INPUTS)))
    assert loads == 1


def test_an_error_of_the_model_itself_is_the_uncompiled_one(compiled: Artifact) -> None:
    eager = load_shard(compiled, stage=0, stages=2, runtime="eager")
    entry = compiled.manifest.cuts[0].stages[0]
    shard = Shard(entry, compiled.manifest.signature, Refuses(), uncompiled=lambda: eager._runtime)
    with pytest.raises(IndexError, match="out of range"):
        shard.run((IDS + 10**6, INPUTS[1]))
