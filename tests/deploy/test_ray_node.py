"""Ray's nodes, started as the manifests say, and asked and ended as Kubernetes does it."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.chaos.hosts import a_token, end, started
from tests.deploy.command_lines import kuberays_ray_start
from tests.deploy.kustomization import build
from tests.shardline.serve_process import wait_for
from tests.shardline.test_join import a_free_port

BASE = Path(__file__).parents[2] / "deploy" / "kubernetes" / "base"
RAY = str(Path(sys.executable).parent / "ray")


@dataclass(frozen=True, slots=True)
class Node:
    """port: the one that its probes ask."""

    process: subprocess.Popen[str]
    port: int
    log: Path

    @property
    def raylet(self) -> psutil.Process:
        return next(one for one in psutil.Process(self.process.pid).children() if "raylet" in one.name())


@pytest.fixture(scope="module")
def groups() -> tuple[dict[str, Any], dict[str, Any]]:
    """Of the head and of the workers."""
    (cluster,) = (one for one in build(BASE) if one["kind"] == "RayCluster")
    return cluster["spec"]["headGroupSpec"], cluster["spec"]["workerGroupSpecs"][0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sockets lie below it: its path must be short."""
    return tmp_path_factory.mktemp("r")


@pytest.fixture(scope="module")
def head(groups: tuple[dict[str, Any], dict[str, Any]], folder: Path) -> Iterator[Node]:
    port = a_free_port()
    with a_token():
        node = start(groups[0], folder / "head.log", {"port": str(port), "temp-dir": str(folder)}, asked=port)
        try:
            yield node
        finally:
            end(node.process)


def start(group: Mapping[str, Any], log: Path, options: Mapping[str, str], *, asked: int = 0) -> Node:
    """A node of the group on this machine. `asked`: the port that its probes ask; 0: its node manager's."""
    params = dict(group["rayStartParams"])
    ports = {name: str(a_free_port()) for name in [*params, "metrics-export-port"] if name.endswith("-port")}
    words = kuberays_ray_start({**params, **ports, "node-ip-address": "127.0.0.1", **options}, head="port" in options)
    words = [word for word in words if not word.startswith("--address") or "svc" not in word]
    (container,) = group["template"]["spec"]["containers"]
    environment = {one["name"]: one["value"] for one in container["env"] if "value" in one}
    node = Node(started(log, [RAY, "start", *words], **environment), asked or int(ports["node-manager-port"]), log)
    try:
        wait_for(f"Ray runs; see {log}", lambda: node.process.poll() is not None or "--block" in log.read_text())
        assert node.process.poll() is None, log.read_text()
    except BaseException:
        end(node.process)
        raise
    return node


def is_well(node: Node) -> bool:
    """As the kubelet asks it: by gRPC's own health service, without a token."""
    with grpc.insecure_channel(f"127.0.0.1:{node.port}") as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=5)
        except grpc.RpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


@pytest.mark.slow
def test_probes_are_answered_without_a_token_and_a_node_that_froze_fails_them(
    groups: tuple[dict[str, Any], dict[str, Any]], head: Node, folder: Path
) -> None:
    assert is_well(head)
    worker = start(groups[1], folder / "worker.log", {"address": f"127.0.0.1:{head.port}", "num-cpus": "1"})
    try:
        wait_for("the worker's probe is answered", lambda: is_well(worker), 30)
        worker.raylet.suspend()
        assert not is_well(worker)
        worker.raylet.resume()
        wait_for("it is well again", lambda: is_well(worker), 30)
    finally:
        end(worker.process)


def test_serve_waits_with_rays_token_and_whoever_has_another_is_refused(head: Node) -> None:
    command = [RAY, "health-check", f"--address=127.0.0.1:{head.port}"]
    assert subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == 0
    other = {**os.environ, "RAY_AUTH_TOKEN": "0" * 64}
    assert subprocess.run(command, capture_output=True, timeout=60, check=False, env=other).returncode != 0


def test_a_driver_joins_from_a_container_that_shares_processes_and_rays_folder(head: Node, folder: Path) -> None:
    """The container: a mount namespace with an own /tmp, into which Ray's folder alone is mounted."""
    covers = Path("/", "tmp")
    if Path(sys.executable).is_relative_to(covers) or BASE.is_relative_to(covers):
        pytest.skip("this interpreter, or the project, lies below /tmp, which is covered here")
    covered = (
        'mount --bind "$0" /mnt && mount -t tmpfs tmpfs /tmp && mkdir -p "$0" && mount --bind /mnt "$0" && exec "$@"'
    )
    code = "import ray, sys; ray.init(address=sys.argv[1], log_to_driver=False); print(ray.is_initialized())"
    unshared = ["unshare", "--mount", "--propagation", "private", "sh", "-c"]
    refused = subprocess.run([*unshared, "mount -t tmpfs tmpfs /mnt"], capture_output=True, text=True, check=False)
    if refused.returncode:
        pytest.skip(f"no mount namespaces here: {refused.stderr.strip()}")
    done = subprocess.run(
        [*unshared, covered, str(folder), sys.executable, "-c", code, f"127.0.0.1:{head.port}"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout == "True\n", done.stderr


def test_an_empty_node_that_is_told_to_end_does_not_wait(
    groups: tuple[dict[str, Any], dict[str, Any]], head: Node, folder: Path
) -> None:
    worker = start(groups[1], folder / "worker.log", {"address": f"127.0.0.1:{head.port}", "num-cpus": "1"})
    try:
        worker.process.send_signal(signal.SIGTERM)
        worker.process.wait(60)
    finally:
        end(worker.process)


def test_a_head_that_is_told_to_end_does_not_wait_for_the_controller_to_move(head: Node) -> None:
    """The last one: it ends the head of them all."""
    head.process.send_signal(signal.SIGTERM)
    head.process.wait(60)
