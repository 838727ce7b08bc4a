"""A `serve` that joins a Ray cluster which outlives it, and one that dies without a word."""

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
import tritonclient.grpc as triton

from compressor.package import package
from tests.shardline.serve_process import Load, alive, infer, kill, serve, shardline, wait_for
from worker.model_yaml import ModelYaml, write_model_yaml

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    package("tests.models:chain", folder / "chain", stages=(2,), runtime="eager")
    write_model_yaml(folder / "chain" / "model.yaml", ModelYaml(stages=2, replicas=1, cpus=0.5, runtime="eager"))
    return folder


_given: set[int] = set()


def a_free_port() -> int:
    """Not given before, and below those that the system gives to connections: it stays free until it is listened on."""
    connections = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii").split()[0])
    while True:
        port = secrets.choice(range(20_000, max(30_000, connections)))
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("", port))
            if port not in _given:
                _given.add(port)
                return port


def end(processes: list[psutil.Process]) -> None:
    for process in alive(processes):
        process.kill()
    psutil.wait_procs(processes, 10)


@contextmanager
def started(command: list[str], log: Path) -> Iterator[psutil.Process]:
    """Killed with all that it started when the context ends."""
    with log.open("a") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said, cwd=Path(__file__).parents[2])
    own = psutil.Process(process.pid)
    try:
        yield own
    finally:
        if process.poll() is None:
            end([*own.children(recursive=True), own])
        process.wait()


@contextmanager
def ray_node(folder: Path, ip: str, *options: str) -> Iterator[psutil.Process]:
    """`ray start`, as an operator would have it running; its log is in `folder`."""
    log = folder / f"ray-{len(list(folder.glob('ray-*')))}.log"
    ray = str(Path(sys.executable).parent / "ray")
    with started([ray, "start", "--block", *options, "--node-ip-address", ip], log) as node:
        wait_for("Ray runs", lambda: "--block" in log.read_text())
        yield node


@contextmanager
def a_ray_cluster(folder: Path) -> Iterator[str]:
    """`ray start` with 2 CPUs, as an operator would have it running; its address."""
    os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="0123456789abcdef" * 4, RAY_USAGE_STATS_ENABLED="0")
    port = a_free_port()
    head = ("--head", "--port", str(port), "--num-cpus", "2", "--include-dashboard", "false")
    try:
        with ray_node(folder, "127.0.0.1", *head, "--temp-dir", str(folder)):
            yield f"127.0.0.1:{port}"
    finally:
        for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_USAGE_STATS_ENABLED"):
            del os.environ[name]


def test_a_cluster_outlives_its_serve_and_the_next_serve_finds_it_alive(
    models: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("r")
    state = tmp_path_factory.mktemp("join") / "state"
    with a_ray_cluster(folder) as address:
        with serve(models, state, "--address", address, cpus=None) as first:
            workers = first.pids()
            assert len(workers) == 2
            first.process.kill()
            first.process.wait()
            status = shardline("status", "--state-dir", state)
            assert status.returncode == 0, "the controller answers without its serve"
            for pid in workers:
                assert psutil.pid_exists(pid)
        with serve(models, state, "--address", address, cpus=None) as second:
            assert second.pids() == workers, "adopted, none restarted"
            with triton.InferenceServerClient(second.url) as client:
                values = np.ones((1, 4), np.float32)
                np.testing.assert_array_equal(infer(client, values), 16 * values + 15)
            other = shardline(
                *("serve", models, "--listen", "127.0.0.1:0", "--address", address),
                *("--state-dir", state.with_name("other")),
            )
            assert other.returncode == 1
            assert f"already serves for the state dir {state}" in other.stderr
            too_many = shardline("scale", "chain/0=9", "--wait", "25", "--state-dir", state)
            assert too_many.returncode == 1
            assert "no room: a replica takes 0.5 CPU, and 0 of the cluster's 2 are free" in too_many.stderr
            fewer = shardline("scale", "chain/0=1", "--wait", "30", "--state-dir", state)
            assert fewer.returncode == 0, fewer.stderr
            second.process.kill()
            second.process.wait()
        stopped = shardline("stop", "--state-dir", state)
        assert stopped.returncode == 0, stopped.stderr
        wait_for("its workers are gone", lambda: not any(psutil.pid_exists(pid) for pid in workers))
        assert shardline("status", "--state-dir", state).returncode == 3


def test_a_serve_that_leaves_its_cluster_running_ends_alone_and_the_next_adopts_the_same_workers(
    models: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("left")
    state = folder / "state"
    with a_ray_cluster(tmp_path_factory.mktemp("r")) as address:
        options = ("--address", address, "--leave-running")
        with ExitStack() as stack:
            first = stack.enter_context(serve(models, state, *options, cpus=None))
            workers = first.pids()
            generation = first.status()["generation"]
            load = stack.enter_context(Load(stack.enter_context(a_gateway(state, folder)), callers=1))
            kill(first.process.pid, signal.SIGTERM)
            assert first.process.wait(60) == 0
            assert f"`shardline stop --state-dir {state}` ends it" in state.with_name("state.log").read_text()
            assert first.pids() == workers, "its controller and its workers run on"
            load.wait_for_more(10)
            second = stack.enter_context(serve(models, state, *options, cpus=None))
            assert second.pids() == workers, "adopted, none restarted"
            assert second.status()["generation"] == generation, "nothing about them changed"
            load.wait_for_more(10)
            assert load.failed == []
        (folder / "token").write_text("0123456789abcdef" * 2)
        with serve(models, state, *options, "--token-file", str(folder / "token"), cpus=None) as third:
            assert third.pids() == workers
            assert "it keeps the token that it began with" in state.with_name("state.log").read_text()
            stopped = shardline("stop", "--state-dir", state)
            assert stopped.returncode == 0, stopped.stderr
            assert third.process.wait(10) == 0
            wait_for("its workers are gone", lambda: not any(psutil.pid_exists(pid) for pid in workers), 10)
        wait_for("so is the controller", lambda: not controllers(), 30)


@contextmanager
def a_gateway(state: Path, folder: Path) -> Iterator[str]:
    """One that is not `serve`'s own; its host:port."""
    ready = folder / "gateway.ready"
    words = ("--control", str(state / "control.json"), "--listen", "127.0.0.1:0", "--ready-file", str(ready))
    with (folder / "gateway.log").open("w") as log:
        gateway = subprocess.Popen([sys.executable, "-m", "gateway", *words], stdout=log, stderr=log)
    try:
        wait_for("the gateway is ready", ready.exists)
        yield json.loads(ready.read_text())["address"]
    finally:
        gateway.terminate()
        gateway.wait(60)


def test_a_stop_that_was_killed_comes_to_its_end_and_the_next_serve_begins_anew(
    models: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    state = tmp_path_factory.mktemp("stopped") / "state"
    with a_ray_cluster(tmp_path_factory.mktemp("r")) as address:
        with serve(models, state, "--address", address, cpus=None) as first:
            before = first.status()
            workers = [psutil.Process(pid) for pid in first.pids()]
            for worker in workers:
                worker.suspend()  # so that the stop is not over before it is killed
            kill(first.process.pid, signal.SIGTERM)
            wait_for("it stops", lambda: any("asked to stop" in one["why"] for one in first.status()["decisions"]))
            kill(first.process.pid)
            first.process.wait()
        with serve(models, state, "--address", address, cpus=None) as second:
            assert not alive(workers)
            assert second.status()["generation"] > before["generation"]
            with triton.InferenceServerClient(second.url) as client:
                values = np.ones((1, 4), np.float32)
                np.testing.assert_array_equal(infer(client, values), 16 * values + 15)
        wait_for("one that nobody starts again ends too", lambda: not controllers())


def controllers() -> list[psutil.Process]:
    below = psutil.Process().children(recursive=True)
    return [one for one in below if "ray::ControllerActor" in " ".join(one.cmdline())]


def test_a_serve_that_is_killed_leaves_no_process_behind(
    models: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with serve(models, tmp_path_factory.mktemp("killed") / "state") as serving:
        below = serving.started()
        kill(serving.process.pid)
        serving.process.wait()
        ours = [each for each in alive(below) if "Agent" not in each.name()]
        wait_for("workers, controller and gateway are gone", lambda: not alive(ours), 30)
        wait_for("Ray's agents have noticed too", lambda: not alive(below), 120)


def test_a_frozen_controller_is_started_anew_and_its_workers_are_kept(
    models: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with serve(models, tmp_path_factory.mktemp("frozen") / "state") as serving, Load(serving.url, callers=1) as load:
        workers = serving.pids()
        (controller,) = serving.named("ray::ControllerActor")
        controller.suspend()
        log = serving.state_dir.with_name("state.log")
        wait_for("serve notices", lambda: "starting it anew" in log.read_text())
        wait_for("another answers", lambda: shardline("status", "--state-dir", serving.state_dir).returncode == 0)
        wait_for("it knows the workers", lambda: serving.pids() == workers)
        assert not alive([controller])
        load.wait_for_more(10)
    assert load.failed == []


def test_a_second_signal_ends_it_at_once_and_leaves_no_process_behind(
    models: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with serve(models, tmp_path_factory.mktemp("forced") / "state") as serving, Load(serving.url, callers=1) as load:
        load.wait_for_more(10)
        below = serving.started()
        log = serving.state_dir.with_name("state.log")
        kill(serving.process.pid, signal.SIGINT)
        wait_for("it drains", lambda: "draining" in log.read_text())
        wait_for("the signals are two wishes", lambda: forced(serving.process), 10)
        assert serving.process.wait(20) == 130
        wait_for("all its processes are gone", lambda: not alive(below), 10)


def forced(process: subprocess.Popen[str]) -> bool:
    process.send_signal(signal.SIGINT)
    return process.poll() is not None
