"""The whole product on this machine: real processes, an embedded Ray, a stock client."""

import json
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import tritonclient.grpc as triton

from compressor.package import package
from tests.shardline.serve_process import COMMAND, Load, ServeProcess, alive, infer, kill, serve, shardline, wait_for
from tests.shardline.terminal import CTRL_C, Terminal
from worker.errors import DeadlineExceeded, Unavailable
from worker.model_yaml import ModelYaml, write_model_yaml


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    package("tests.models:chain", folder / "chain", stages=(2,), runtime="eager")
    write_model_yaml(folder / "chain" / "model.yaml", ModelYaml(stages=2, replicas=2, cpus=0.25, runtime="eager"))
    return folder


@pytest.fixture(scope="module")
def cluster(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServeProcess]:
    with serve(models, tmp_path_factory.mktemp("serve") / "state") as serving:
        wait_for("every replica is ready", lambda: len(serving.pids()) == 4)
        yield serving


def test_a_stock_client_is_answered(cluster: ServeProcess) -> None:
    with triton.InferenceServerClient(cluster.url) as client:
        assert client.is_model_ready("chain")
        values = np.arange(6, dtype=np.float32).reshape(2, 3)
        np.testing.assert_array_equal(infer(client, values), 16 * values + 15)


def test_status_shows_every_replica_and_why_it_was_started(cluster: ServeProcess) -> None:
    status = cluster.status()
    (model,) = status["models"]
    assert (model["model"], model["version"], model["ready"]) == ("chain", "1", True)
    for stage in model["stages"]:
        assert [replica["state"] for replica in stage["replicas"]] == ["ready", "ready"]
        for replica in stage["replicas"]:
            assert psutil.pid_exists(replica["pid"])
            assert replica["address"].startswith("127.0.0.1:")
            assert replica["runtime"] == "eager"
            assert replica["resident_bytes"] > 0
    assert len([one for one in status["decisions"] if one["what"].startswith("start ")]) >= 4
    assert status["nodes"][0]["resources"]["CPU"] == 2.0
    for_machines = shardline("status", "--json", "--state-dir", cluster.state_dir)
    assert json.loads(for_machines.stdout)["models"][0]["model"] == "chain"
    for_people = shardline("status", "--state-dir", cluster.state_dir)
    assert for_people.returncode == 0
    assert "chain/1 ready" in for_people.stdout


def test_status_on_a_terminal_follows_what_happens_until_ctrl_c(cluster: ServeProcess) -> None:
    watching = Terminal(*COMMAND, "status", "--watch", "--state-dir", str(cluster.state_dir))
    with watching, Load(cluster.url):
        watching.wait_for(r"chain/1 ready")
        watching.wait_for(r"[1-9]\d*\.\d requests/s  p50 \d+\.\d ms")
        watching.wait_for(r"node \S+ \S+: 4 replicas take 1 of 2 CPU")
        watching.press(CTRL_C)
        assert watching.ended() == 0
    assert "Traceback" not in watching.seen


def test_status_that_is_watched_by_a_program_comes_again_and_again(cluster: ServeProcess) -> None:
    command = [*COMMAND, "status", "--watch", "--state-dir", str(cluster.state_dir)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watching:
        assert watching.stdout is not None
        patience = threading.Timer(60, watching.kill)
        patience.start()
        try:
            seen = 0
            for line in watching.stdout:
                seen += line.startswith("chain/1 ready")
                if seen == 2:
                    watching.send_signal(signal.SIGINT)
                    break
            watching.stdout.read()
            assert watching.wait(10) == 0
        finally:
            patience.cancel()


def test_infer_from_the_command_line(cluster: ServeProcess, tmp_path: Path) -> None:
    np.savez(tmp_path / "in.npz", input=np.ones((2, 3), np.float32))
    done = shardline(
        *("infer", "chain/1", "--input", tmp_path / "in.npz", "--out", tmp_path / "out.npz"),
        *("--state-dir", cluster.state_dir),
    )
    assert done.returncode == 0, done.stderr
    assert "output  float32[2, 3]  [31, 31, 31, 31, 31, 31]" in done.stdout
    np.testing.assert_array_equal(np.load(tmp_path / "out.npz")["output"], np.full((2, 3), 31.0))


def test_infer_says_what_is_wrong(cluster: ServeProcess, tmp_path: Path) -> None:
    at = ("--state-dir", cluster.state_dir)
    np.savez(tmp_path / "in.npz", input=np.ones((2, 3), np.float32))
    (tmp_path / "bad.npz").write_text("no arrays")
    unknown = shardline("infer", "nobody", "--input", tmp_path / "in.npz", *at)
    assert (unknown.returncode, "unknown model" in unknown.stderr) == (1, True)
    text = shardline("infer", "chain", "--text", "a cat", *at)
    assert (text.returncode, "--text needs a model with one BYTES input" in text.stderr) == (1, True)
    bad = shardline("infer", "chain", "--input", tmp_path / "bad.npz", *at)
    assert (bad.returncode, "not an .npz file of plain arrays" in bad.stderr) == (1, True)
    below = tmp_path / "in.npz" / "out.npz"
    unwritten = shardline("infer", "chain", "--input", tmp_path / "in.npz", "--out", below, *at)
    assert (unwritten.returncode, unwritten.stderr) == (
        1,
        f"shardline: {below}: Not a directory; check the path, and run the command again\n",
    )


def test_a_second_serve_on_the_same_state_dir_is_refused(cluster: ServeProcess, models: Path) -> None:
    second = shardline("serve", models, "--listen", "127.0.0.1:0", "--state-dir", cluster.state_dir)
    assert second.returncode == 1
    assert f"belongs to a living `shardline serve` (process {cluster.process.pid}, which listens on {cluster.url})" in (
        second.stderr
    )


def test_a_busy_port_is_told_before_anything_is_started(cluster: ServeProcess, models: Path, tmp_path: Path) -> None:
    second = shardline("serve", models, "--listen", cluster.url, "--state-dir", tmp_path / "state")
    assert second.returncode == 1
    assert f"cannot listen on {cluster.url}: Address already in use" in second.stderr
    assert "starting an embedded Ray" not in second.stderr


def test_scaling_up_and_down_under_load_loses_nothing(cluster: ServeProcess) -> None:
    at = ("--wait", "240", "--state-dir", str(cluster.state_dir))
    with Load(cluster.url) as load:
        load.wait_for_more(100)
        up = shardline("scale", "chain/0=3", *at)
        assert up.returncode == 0, up.stderr
        wait_for(
            "the new one works too",
            lambda: [one["computed_rows"] > 0 for one in cluster.replicas(0)] == [True] * 3,
        )
        down = shardline("scale", "chain=1", *at)
        assert down.returncode == 0, down.stderr
        load.wait_for_more(300)
        again = shardline("scale", "chain=2", *at)
        assert again.returncode == 0, again.stderr
        load.wait_for_more(100)
    assert load.failed == []


@pytest.mark.parametrize("stage", [0, 1])
def test_a_killed_worker_is_replaced_and_nothing_is_lost(cluster: ServeProcess, stage: int) -> None:
    before = cluster.pids()
    victim = cluster.replicas(stage)[0]["pid"]
    with Load(cluster.url) as load:
        load.wait_for_more(100)
        kill(victim)
        load.wait_for_more(100)
        wait_for(
            "two ready replicas again",
            lambda: len(pids := {one["pid"] for one in cluster.replicas(stage)}) == 2 and victim not in pids,
        )
        load.wait_for_more(100)
    assert load.failed == []
    after = cluster.pids()
    assert victim in before - after
    assert len(after) == 4


def test_a_frozen_worker_is_replaced_and_nothing_is_lost(cluster: ServeProcess) -> None:
    victim = cluster.replicas(1)[0]["pid"]
    frozen = psutil.Process(victim)
    with Load(cluster.url) as load:
        load.wait_for_more(100)
        kill(victim, signal.SIGSTOP)
        wait_for("it is replaced", lambda: len(pids := cluster.pids()) == 4 and victim not in pids)
        load.wait_for_more(100)
    assert load.failed == []
    wait_for("the frozen process is gone", lambda: not alive([frozen]))


def test_a_killed_controller_comes_back_to_the_same_workers_while_gateways_serve(cluster: ServeProcess) -> None:
    before = cluster.status()
    workers = cluster.pids()
    (controller,) = cluster.named("ray::ControllerActor")
    with Load(cluster.url) as load:
        load.wait_for_more(50)
        controller.kill()
        load.wait_for_more(200)
        wait_for("it answers again", lambda: cluster_answers(cluster))
        wait_for("it has seen all workers", lambda: cluster.pids() == workers)
        told = int(before["generation"])
        wait_for("it has told the gateways anew", lambda: int(cluster.status()["generation"]) > told)
        after = cluster.status()
        scaled = shardline("scale", "chain/1=3", "--wait", "240", "--state-dir", cluster.state_dir)
        assert scaled.returncode == 0, scaled.stderr
        load.wait_for_more(100)
        back = shardline("scale", "chain/1=2", "--wait", "240", "--state-dir", cluster.state_dir)
        assert back.returncode == 0, back.stderr
    assert load.failed == []
    assert not any(decision["what"].startswith(("start", "stop")) for decision in after["decisions"])
    (new,) = cluster.named("ray::ControllerActor")
    assert new.pid != controller.pid


def cluster_answers(cluster: ServeProcess) -> bool:
    try:
        cluster.status()
    except (DeadlineExceeded, Unavailable):
        return False
    return True


def test_a_killed_gateway_is_started_again_on_the_same_port(cluster: ServeProcess) -> None:
    (gateway,) = cluster.named("-m gateway --listen")
    gateway.kill()

    def answers() -> bool:
        try:
            with triton.InferenceServerClient(cluster.url) as client:
                return bool(client.is_model_ready("chain", client_timeout=1.0))
        except triton.InferenceServerException:
            return False

    wait_for("another gateway answers", answers)


def test_stop_drains_and_leaves_no_process_behind(cluster: ServeProcess) -> None:
    below = cluster.started()
    assert len(below) > 8
    with Load(cluster.url, callers=2) as load:
        load.wait_for_more(50)
        stopped = shardline("stop", "--state-dir", cluster.state_dir)
    assert stopped.returncode == 0, stopped.stderr
    assert cluster.process.wait(120) == 0
    wait_for("all its processes are gone", lambda: not alive(below), 120)
    lost = [failure for failure in load.failed if "UNAVAILABLE" not in failure and "Connection refused" not in failure]
    assert lost == [], "whoever comes after the drain is told so; nobody is left without an answer"
    nothing = shardline("status", "--state-dir", cluster.state_dir)
    assert nothing.returncode == 3
    assert "nothing serves for the state dir" in nothing.stderr
