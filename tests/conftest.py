"""In which process a test runs, artifacts that several tests read (whoever changes one copies it first), and a disk
that is soon full.
"""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

from compressor.package import package
from tests import models
from worker.artifact import Artifact, load_artifact

signal.signal(signal.SIGTERM, signal.default_int_handler)  # what tests started is stopped, also where a test run is
# A shell's background job ignores Ctrl-C, and so would what it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

START_RAY = (
    *("tests/chaos/", "tests/cluster/", "tests/deploy/test_ray_node.py", "tests/shardline/"),
    *("tests/worker/test_local_ray.py", "tests/compressor/training/test_train_ray.py"),
    "tests/compressor/search/test_fan_out.py",
)
"""Tests that start Ray, or wait for much that goes on by itself: marked `cluster`, they run one after the other."""
START_NONE = (
    *("tests/cluster/planning/", "tests/shardline/test_compressing.py", "tests/shardline/test_os_errors.py"),
    "tests/shardline/test_planning.py",
)
"""Of these, those that do not."""
USE_COMPILED = ("tests/compressor/test_package.py", "tests/worker/test_shard.py")
"""Tests that use the artifact `compiled`, which takes long to make: once is enough."""

settings.register_profile("shardline", deadline=None)  # an example's time says how busy the machine is
settings.load_profile("shardline")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A file's tests stay together, and so do those that share what takes long to make."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return "compiled" if nodeid.startswith(USE_COMPILED) else nodeid.partition("::")[0]

    return ByFile(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.nodeid.startswith(START_RAY) and not item.nodeid.startswith(START_NONE):
            item.add_marker("cluster")
        if item.get_closest_marker("cuda") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="there is no CUDA device here"))


@pytest.fixture(scope="session")
def machine_key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where this test run's machine key is, or will be made."""
    return tmp_path_factory.mktemp("key") / "shardline" / "key"


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tests.models.toy`, uncompiled, cut into one and two."""
    return package(models.toy(), tmp_path_factory.mktemp("toy") / "toy", runtime="eager")


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory, machine_key: Path) -> Artifact:
    """`tests.models.attention` in int8, cut into two, each stage compiled for this machine."""
    from compressor.packaging.compile import compiler_problem

    problem = compiler_problem()
    if problem:
        pytest.skip(problem)
    out = tmp_path_factory.mktemp("compiled") / "attention"
    return load_artifact(package(models.attention(), out, quantize="int8", stages=(2,), key=machine_key))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MB. `mount -o remount,size=64m` gives it room."""
    folder = tmp_path / "small-disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    refused = "mount: only root may" if os.geteuid() else ""
    if not refused:
        done = subprocess.run(mount, capture_output=True, text=True, check=False, timeout=10)
        refused = done.stderr if done.returncode else ""
    if refused:
        pytest.skip(f"a small disk cannot be mounted here: {refused.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True, timeout=10)  # noqa: S607
