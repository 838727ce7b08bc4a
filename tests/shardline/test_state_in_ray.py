"""`serve --state-in ray`: a controller that dies finds what is wanted in Ray's storage."""

from pathlib import Path

import pytest

from cluster.state import StateDir
from compressor.package import package
from tests.shardline.serve_process import Load, alive, controller_process, epoch, serve, shardline, wait_for
from tests.shardline.test_join import a_ray_cluster
from worker.model_yaml import ModelYaml, write_model_yaml

pytestmark = pytest.mark.slow


@pytest.fixture
def models(tmp_path: Path) -> Path:
    package("tests.models:chain", tmp_path / "models" / "chain", stages=(2,), runtime="eager")
    config = ModelYaml(stages=2, replicas=1, cpus=0.25, runtime="eager")
    write_model_yaml(tmp_path / "models" / "chain" / "model.yaml", config)
    return tmp_path / "models"


def test_a_controller_whose_state_file_is_gone_goes_on_where_the_one_before_was(
    models: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with (
        a_ray_cluster(tmp_path_factory.mktemp("r")) as address,
        serve(models, tmp_path / "state", "--address", address, "--state-in", "ray", cpus=None) as serving,
        Load(serving.url, callers=1) as load,
    ):
        scaled = shardline("scale", "chain/1=2", "--wait", "60", "--state-dir", serving.state_dir)
        assert scaled.returncode == 0, scaled.stderr
        workers, before = serving.pids(), epoch(serving.state_dir)
        assert len(workers) == 3
        StateDir(serving.state_dir).state_file.unlink(missing_ok=True)
        controller = controller_process()
        controller.kill()
        wait_for("it is gone", lambda: not alive([controller]))
        wait_for("another answers", lambda: shardline("status", "--state-dir", serving.state_dir).returncode == 0)
        wait_for("it knows the same workers", lambda: serving.pids() == workers)
        assert epoch(serving.state_dir) > before
        load.wait_for_more(20)
    assert load.failed == []
