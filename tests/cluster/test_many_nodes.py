"""Three Ray nodes of different kinds on this machine: a pipeline across them, one that dies, one that joins."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import ray.cluster_utils

from compressor.package import package
from tests.shardline.serve_process import Load, ServeProcess, serve, shardline, wait_for
from worker.errors import DeadlineExceeded, Unavailable

pytestmark = pytest.mark.slow

NOTICED_SOON = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_failure_threshold": 6,
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    package("tests.models:chain", folder / "chain", stages=(3,), runtime="eager")
    (folder / "chain" / "model.yaml").write_text(
        "stages: 3\nreplicas: [1, 2, 2]\ncpus: 0.25\nruntime: eager\n"
        "placement:\n  resources: [{}, {accelerator: 1}, {}]\n  labels: [{kind: plain}, {}, {}]\n"
    )
    return folder


@contextmanager
def three_nodes() -> Iterator[tuple[Any, list[Any]]]:
    """A plain node, which is the head, and two that pretend to have an accelerator."""
    cluster = ray.cluster_utils.Cluster(
        initialize_head=True,
        head_node_args={
            **{"num_cpus": 1, "include_dashboard": False, "_system_config": NOTICED_SOON},
            "labels": {"kind": "plain"},
        },
    )
    try:
        yield cluster, [cluster.add_node(num_cpus=1, resources={"accelerator": 1}) for _ in range(2)]
    finally:
        cluster.shutdown()  # type: ignore[no-untyped-call]


def accelerators(serving: ServeProcess) -> list[str]:
    """The nodes that the ready replicas of stage 1 are on; none where a busy controller does not say in time."""
    try:
        replicas = serving.status()["models"][0]["stages"][1]["replicas"]
    except (DeadlineExceeded, Unavailable):
        return []
    return sorted(replica["node"] for replica in replicas if replica["state"] == "ready")


def test_a_pipeline_spans_nodes_of_different_kinds_and_heals_when_one_dies(models: Path, tmp_path: Path) -> None:
    with (
        three_nodes() as (cluster, others),
        serve(models, tmp_path / "state", "--address", cluster.address, cpus=None) as serving,
    ):
        wait_for("every replica is ready", lambda: len(serving.pids()) == 5, 180)
        nodes = {node["id"]: node for node in serving.status()["nodes"]}
        assert len(nodes) == 3
        assert len(set(accelerators(serving))) == 2, "replicas of one stage sit apart"
        for node in accelerators(serving):
            assert nodes[node]["resources"]["accelerator"] == 1
        (first,) = serving.replicas(0)
        assert nodes[first["node"]]["labels"]["kind"] == "plain"
        lost, kept = others
        with Load(serving.url) as load:
            load.wait_for_more(100)
            cluster.remove_node(lost, allow_graceful=False)
            load.wait_for_more(300)
            wait_for("its replica is missed", lambda: accelerators(serving) == [kept.node_id], 180)
            wait_for(
                "it says what it waits for",
                lambda: "no room" in shardline("status", "--state-dir", serving.state_dir).stdout,
                180,
            )
            new = cluster.add_node(num_cpus=1, resources={"accelerator": 1})
            wait_for("it is healed", lambda: accelerators(serving) == sorted([kept.node_id, new.node_id]), 180)
            load.wait_for_more(100)
        assert load.failed == []
