"""Nodes come when models want more room, and go when they do not: Ray's own autoscaler over its fake cloud."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray.experimental.internal_kv as ray_kv
from ray._private.ray_constants import AUTOSCALER_RESOURCE_REQUEST_CHANNEL

from cluster.fleet import Bundle
from cluster.launch import embedded_ray
from cluster.ray_fleet import RayFleet
from cluster.ray_worker import RayWorker
from cluster.state import State
from cluster.world import Stage
from compressor.package import package
from tests.chaos.hosts import a_token
from tests.cluster.fake_cloud import fake_cloud
from tests.shardline.serve_process import ServeProcess, serve, shardline, wait_for
from tests.shardline.test_join import a_free_port
from worker.model_yaml import ModelYaml

pytestmark = pytest.mark.slow


@pytest.fixture
def models(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    package("tests.models:chain", folder / "chain", stages=(1,), runtime="eager")
    (folder / "chain" / "model.yaml").write_text("{stages: 1, replicas: 1, cpus: 1, runtime: eager}")
    return folder


@pytest.fixture
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("c")
    with a_token(), fake_cloud(folder, a_free_port(), {"CPU": 1}, most=4, idle_s=6) as address:
        yield address


def nodes(serving: ServeProcess) -> int:
    return len(serving.status()["nodes"])


def test_from_one_node_to_three_and_back(cloud: str, models: Path, tmp_path: Path) -> None:
    with serve(models, tmp_path / "state", "--address", cloud, cpus=None) as serving:
        assert nodes(serving) == 1
        at = ("--state-dir", serving.state_dir)
        assert shardline("scale", "chain=3", *at).returncode == 0
        wait_for("three nodes, with a replica on each", lambda: len(serving.pids()) == 3 and nodes(serving) == 3, 180)
        assert sorted(node["replicas"] for node in serving.status()["nodes"]) == [1, 1, 1]
        assert shardline("scale", "chain=1", *at).returncode == 0
        wait_for("one node is left", lambda: nodes(serving) == 1 and len(serving.pids()) == 1, 180)


def asked_of_ray() -> Any:
    return json.loads(ray_kv._internal_kv_get(AUTOSCALER_RESOURCE_REQUEST_CHANNEL))


async def test_what_a_controller_asked_for_before_it_died_is_replaced_by_the_next(tmp_path: Path) -> None:
    state = State(repository="/models", host=None, token="0123456789abcdef", models={})
    with embedded_ray(tmp_path, cpus=1):
        await RayFleet(state, epoch=1).ask_for([Bundle({"CPU": 4.0})])
        assert asked_of_ray() == [{"CPU": 4.0}]
        await RayFleet(state, epoch=2).ask_for(())
        assert asked_of_ray() == []


async def test_what_runs_by_now_is_asked_for_anew_beside_what_still_finds_no_room(tmp_path: Path) -> None:
    """Ray compares with the whole cluster: what runs has to be in what it is asked for."""
    state = State(repository="/models", host=None, token="0123456789abcdef", models={})
    with embedded_ray(tmp_path, cpus=1):
        fleet = RayFleet(state, epoch=1)
        await fleet.ask_for([Bundle({"CPU": 2.0})])
        assert asked_of_ray() == [{"CPU": 2.0}]
        started = RayWorker("m/1/0/r0", Stage("m", 1, 0, 0), None, ModelYaml(), epoch=1, adopted=False)
        fleet._workers[started.id] = started
        await fleet.ask_for([Bundle({"CPU": 2.0})])
        runs, lacks = asked_of_ray()
        assert (runs["CPU"], lacks["CPU"]) == (1.0, 2.0)


ASKED_WITH_LABELS = """
import asyncio, pathlib, sys
import ray.experimental.internal_kv as ray_kv
from ray.autoscaler.v2.sdk import get_cluster_resource_state
from cluster.fleet import Bundle
from cluster.launch import embedded_ray
from cluster.ray_fleet import RayFleet
from cluster.state import State

with embedded_ray(pathlib.Path(sys.argv[1]), cpus=1):
    fleet = RayFleet(State(repository="/models", host=None, token="0123456789abcdef", models={}), epoch=1)
    asyncio.run(fleet.ask_for([Bundle({"CPU": 4.0}, {"kind": "big"}), Bundle({"CPU": 2.0})]))
    state = get_cluster_resource_state(ray_kv.internal_kv_get_gcs_client())
    for constraint in state.cluster_resource_constraints:
        for asked in constraint.resource_requests:
            selectors = asked.request.label_selectors
            labels = [(each.label_key, *each.label_values) for one in selectors for each in one.label_constraints]
            print(dict(asked.request.resources_bundle), labels, file=sys.__stdout__)
"""


def test_rays_second_autoscaler_is_told_which_labels_the_nodes_must_have(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ASKED_WITH_LABELS, tmp_path],
        env={**os.environ, "RAY_enable_autoscaler_v2": "1"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert sorted(done.stdout.splitlines()) == ["{'CPU': 2.0} []", "{'CPU': 4.0} [('kind', 'big')]"], done.stderr
