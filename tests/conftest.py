"""Artifacts that several tests read. Whoever changes one copies it first."""

from pathlib import Path

import pytest
from hypothesis import settings

from compressor.package import package
from tests import models
from worker.artifact import Artifact, load_artifact

settings.register_profile("shardline", deadline=None)  # an example's time says how busy the machine is
settings.load_profile("shardline")


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
    from compressor.compile import compiler_problem

    problem = compiler_problem()
    if problem:
        pytest.skip(problem)
    out = tmp_path_factory.mktemp("compiled") / "attention"
    return load_artifact(package(models.attention(), out, quantize="int8", stages=(2,), key=machine_key))
