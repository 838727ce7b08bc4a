"""Memory that replicas reserve, on a real Ray: of two nodes with a gigabyte each, and of this machine alone."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray.cluster_utils
import ray.util

from cluster.launch import embedded_ray, joined_ray
from cluster.ray_fleet import RayFleet
from cluster.state import ServedModel, State
from cluster.world import Stage
from tests.cluster.simulation import TOKEN, served
from tests.shardline.serve_process import wait_for

GIB = 2**30


@contextlib.contextmanager
def two_nodes() -> Iterator[None]:
    """Each has cores for every replica, and memory for one of 600 MiB."""
    made: Any = ray.cluster_utils.Cluster
    cluster = made(
        initialize_head=True, head_node_args={"num_cpus": 4, "memory": GIB, "include_dashboard": False}, connect=False
    )
    try:
        cluster.add_node(num_cpus=4, memory=GIB)
        with joined_ray(cluster.address):
            yield
    finally:
        cluster.shutdown()


async def placed(model: ServedModel) -> tuple[list[str], dict[str, float]]:
    """The nodes that Ray put one replica of each stage on, and what they take of the first of them."""
    fleet = RayFleet(State(repository="/none", host="127.0.0.1", token=TOKEN, models={"m": model}))
    await fleet.observe()
    started = [await fleet.start(Stage("m", 1, index), model) for index in range(model.config.stages)]
    try:
        wait_for("both have room", lambda: len(rooms()) == len(started), 60)
        await fleet.observe()
        return list(rooms().values()), next(iter(group_bundles().values()))
    finally:
        for replica in started:
            await fleet.stop(replica)
        await fleet.close()


def group_bundles() -> dict[str, dict[str, float]]:
    table: Any = ray.util.placement_group_table()
    return {one["name"]: one["bundles"][0] for one in table.values() if one["state"] == "CREATED"}


def rooms() -> dict[str, str]:
    """The node of each placement group that holds room."""
    table: Any = ray.util.placement_group_table()
    return {one["name"]: one["bundles_to_node_id"][0] for one in table.values() if one["state"] == "CREATED"}


async def test_two_stages_of_which_one_node_can_hold_either_but_not_both_come_to_two_nodes() -> None:
    with two_nodes():
        together, _ = await placed(served("{stages: 2, cpus: 0.1}"))
        assert len(set(together)) == 1, "stages that talk sit together, where there is room"
        apart, bundle = await placed(served("{stages: 2, cpus: 0.1, memory_mib: 600}"))
        assert len(set(apart)) == 2
        assert bundle == {"CPU": 0.1, "memory": 600.0 * 2**20}


async def test_a_machine_alone_has_memory_to_reserve(tmp_path: Path) -> None:
    with embedded_ray(tmp_path, cpus=1):
        nodes, bundle = await placed(served("{stages: 2, cpus: 0.1, memory_mib: 64}"))
        assert len(nodes) == 2
        assert bundle["memory"] == 64.0 * 2**20
