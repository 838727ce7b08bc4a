"""Several versions at once, scaling from zero, and roll-outs of another cut and another version under load: real
processes, an embedded Ray.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton

from compressor.package import package
from tests.shardline.serve_process import Load, ServeProcess, infer, serve, shardline, wait_for
from worker.model_yaml import ModelYaml, write_model_yaml

CUT_IN_TWO = ModelYaml(stages=2, replicas=1, cpus=0.25, runtime="eager")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    package("tests.models:chain", folder / "chain", stages=(2,), runtime="eager")
    write_model_yaml(folder / "chain" / "model.yaml", CUT_IN_TWO)
    package("tests.models:identity", folder / "sleeper", stages=(1,), runtime="eager")
    (folder / "sleeper" / "model.yaml").write_text(
        "{cpus: 0.1, runtime: eager, deadline_s: 120, "
        "autoscaling: {min: 0, max: 2, down_delay_s: 2, from_zero_wait_s: 120}}"
    )
    for source in ("tests.models:identity", "tests.models:chain"):
        package(source, folder / "twins", stages=(1,), runtime="eager")
    (folder / "twins" / "model.yaml").write_text("{versions: [1, 2], cpus: 0.1, runtime: eager}")
    return folder


@pytest.fixture(scope="module")
def cluster(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServeProcess]:
    with serve(models, tmp_path_factory.mktemp("rollout") / "state") as serving:
        yield serving


def of(cluster: ServeProcess, model: str) -> list[dict[str, Any]]:
    return [one for one in cluster.status()["models"] if one["model"] == model]


def replicas_of(pipeline: dict[str, Any]) -> int:
    return sum(len(stage["replicas"]) for stage in pipeline["stages"])


def replicas(cluster: ServeProcess, model: str) -> int:
    return sum(replicas_of(one) for one in of(cluster, model))


def history(cluster: ServeProcess) -> list[tuple[int, str]]:
    done = shardline("history", "chain", "--json", "--state-dir", cluster.state_dir)
    return [(entry["revision"], entry["what"]) for entry in json.loads(done.stdout)]


def test_the_first_request_to_a_model_without_replicas_waits_for_one_and_is_answered(cluster: ServeProcess) -> None:
    wait_for("it sleeps", lambda: replicas(cluster, "sleeper") == 0)
    with triton.InferenceServerClient(cluster.url) as client:
        assert client.is_model_ready("sleeper"), "clients that poll before they send would never wake it"
        given = triton.InferInput("input", (2, 3), "FP32")
        values = np.arange(6, dtype=np.float32).reshape(2, 3)
        given.set_data_from_numpy(values)
        answer = client.infer("sleeper", [given], client_timeout=120).as_numpy("output")
        np.testing.assert_array_equal(answer, values)
    decisions = cluster.status()["decisions"]
    assert any(one["what"] == "want 1 replicas of sleeper/1, not 0" for one in decisions)
    wait_for("it sleeps again", lambda: replicas(cluster, "sleeper") == 0)


def test_versions_that_are_served_side_by_side_are_asked_for_by_number_and_the_newest_without(
    cluster: ServeProcess,
) -> None:
    with triton.InferenceServerClient(cluster.url) as client:
        wait_for("both versions are ready", lambda: all(client.is_model_ready("twins", one) for one in ("1", "2")))
        assert client.get_model_metadata("twins").versions == ["1", "2"]
        values = np.arange(6, dtype=np.float32).reshape(2, 3)
        given = triton.InferInput("input", values.shape, "FP32")
        given.set_data_from_numpy(values)
        expected = {"1": values, "2": 16 * values + 15, "": 16 * values + 15}
        for version, answer in expected.items():
            found = client.infer("twins", [given], model_version=version, client_timeout=30)
            np.testing.assert_array_equal(found.as_numpy("output"), answer)
            assert found.get_response().model_version == (version or "2")
        with pytest.raises(triton.InferenceServerException, match="'twins' has no version '3'; its versions are 1, 2"):
            client.infer("twins", [given], model_version="3", client_timeout=30)
    assert [(one["version"], replicas_of(one)) for one in of(cluster, "twins")] == [("1", 1), ("2", 1)]


@pytest.mark.slow
def test_another_cut_and_back_under_load_lose_nothing(cluster: ServeProcess, models: Path) -> None:
    at = ("--wait", "90", "--state-dir", str(cluster.state_dir))
    with Load(cluster.url) as load:
        load.wait_for_more(100)
        write_model_yaml(models / "chain" / "model.yaml", CUT_IN_TWO.model_copy(update={"stages": 3}))
        out = shardline("rollout", "chain", *at, within_s=120)
        assert out.returncode == 0, out.stderr + out.stdout
        assert "revision 2 of chain serves: asked to roll out; every replica of it is ready" in out.stdout
        load.wait_for_more(300)
        (now,) = of(cluster, "chain")
        assert (now["revision"], len(now["stages"])) == (2, 3)
        wait_for("the old pipeline is gone", lambda: replicas(cluster, "chain") == 3)
        back = shardline("rollback", "chain", *at, within_s=120)
        assert back.returncode == 0, back.stderr + back.stdout
        load.wait_for_more(300)
        wait_for("two stages again", lambda: replicas(cluster, "chain") == 2)
    assert load.failed == []
    assert history(cluster) == [(1, "served"), (2, "rolled out"), (3, "rolled out")]


@pytest.mark.slow
def test_a_canary_of_a_new_version_gets_its_share_and_then_all(cluster: ServeProcess, models: Path) -> None:
    write_model_yaml(models / "chain" / "model.yaml", CUT_IN_TWO)
    package("tests.models:chain", models / "chain", stages=(2,), runtime="eager")
    with Load(cluster.url) as load:
        load.wait_for_more(50)
        out = shardline(
            *("rollout", "chain", "--canary", "30", "--watch-for", "3"),
            *("--wait", "120", "--state-dir", str(cluster.state_dir)),
            within_s=150,
        )
        assert out.returncode == 0, out.stderr + out.stdout
        assert "gets 30 % of the requests" in out.stdout
        load.wait_for_more(100)
    assert load.failed == []
    assert [one["version"] for one in of(cluster, "chain")] == ["2"]


def test_what_cannot_be_is_refused_and_what_serves_serves_on(cluster: ServeProcess, models: Path) -> None:
    at = ("--state-dir", str(cluster.state_dir))
    file = models / "chain" / "model.yaml"
    file.write_text("{stages: 2, replicas: [1, 2, 3]}")
    bad = shardline("rollout", "chain", *at)
    assert (bad.returncode, "model.yaml:1: replicas: expected 2 values" in bad.stderr) == (1, True), bad.stderr
    file.write_text("{stages: 2, cpus: 64, runtime: eager}")
    huge = shardline("rollout", "chain", *at)
    assert huge.returncode == 1
    assert "a replica takes 64 CPU, and the largest node has 2" in huge.stderr
    assert "What was serving keeps serving" in huge.stderr
    unknown = shardline("rollout", "nobody", *at)
    assert (unknown.returncode, "no such model" in unknown.stderr) == (1, True)
    with triton.InferenceServerClient(cluster.url) as client:
        values = np.ones((1, 4), np.float32)
        np.testing.assert_array_equal(infer(client, values), 16 * values + 15)


@pytest.mark.slow
def test_a_plan_that_its_nodes_cannot_run_is_taken_back(cluster: ServeProcess, models: Path) -> None:
    at = ("--state-dir", str(cluster.state_dir))
    file = models / "chain" / "model.yaml"
    file.write_text("{stages: 2, cpus: 0.1, device: 'cuda:0', runtime: eager}")
    lame = shardline("rollout", "chain", "--wait", "150", *at, within_s=180)
    assert lame.returncode == 1
    assert "was taken back: 3 of its replicas died" in lame.stderr
    with triton.InferenceServerClient(cluster.url) as client:
        values = np.ones((1, 4), np.float32)
        np.testing.assert_array_equal(infer(client, values), 16 * values + 15)
