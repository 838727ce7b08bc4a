"""Harm to a node: its raylet and all its workers die at once, or it is drained, also while a worker elsewhere dies.

Three raylets on this machine, as Ray itself tests.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import ray.cluster_utils

from tests.chaos.case import Recovered
from tests.chaos.cluster import STAGES, Cluster, cluster, make_models
from tests.shardline.serve_process import wait_for

CPUS_OF_A_NODE: Final = 1.0
"""Room for four replicas: two nodes hold all six."""
MOVED_WITHIN_S: Final = 90.0


class OnNodes(Cluster):
    """`raylets`: Ray's `Cluster` below it."""

    raylets: Any


def kill_a_node(one: Cluster) -> Recovered:
    """One that is not the head and holds replicas."""
    raylets, victim, gone = a_used_node(one)
    raylets.remove_node(victim, allow_graceful=False)
    return lambda: one.is_whole(without=gone)


def drain_a_node(one: Cluster) -> Recovered:
    """Another node is added, and one that is not the head and holds replicas is drained through Ray.

    Whole again once its replicas are elsewhere and the empty node has gone.
    """
    raylets, victim, gone = a_used_node(one)
    drain(raylets, victim)
    return emptied(one, raylets, victim, gone)


def kill_while_a_node_drains(one: Cluster) -> Recovered:
    """As `drain_a_node`; meanwhile a worker elsewhere is killed, whose stage only the drained node then answers."""
    raylets, victim, gone = a_used_node(one)
    of_stages = [{replica.pid for replica in one.replicas(stage)} for stage in range(STAGES)]
    killed = next(pid for pids in of_stages if pids & gone for pid in pids - gone)
    drain(raylets, victim)
    wait_for("it is known to drain", lambda: victim.node_id in draining(one), MOVED_WITHIN_S)
    os.kill(killed, signal.SIGKILL)
    still = sum(replica.pid in gone for replica in one.replicas())
    one.note += f", {still} at the kill"
    return emptied(one, raylets, victim, gone | {killed})


def drain(raylets: Any, victim: Any) -> None:
    """Adds a node, and has Ray drain `victim`."""
    raylets.add_node(num_cpus=CPUS_OF_A_NODE)
    words = ("--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "maintenance")
    ray = Path(sys.executable).parent / "ray"
    subprocess.run(
        [ray, "drain-node", "--address", raylets.address, "--node-id", victim.node_id, *words],
        check=True,
        capture_output=True,
        timeout=60,
    )


def emptied(one: Cluster, raylets: Any, victim: Any, gone: frozenset[int]) -> Recovered:
    """Once the cluster is whole without the processes `gone`, and the node `victim` has gone."""
    wait_for("its replicas are elsewhere", lambda: one.is_whole(without=gone), MOVED_WITHIN_S)
    wait_for("the empty node has gone", lambda: victim.node_id not in node_ids(one), MOVED_WITHIN_S)
    raylets.remove_node(victim)
    return lambda: one.is_whole(without=gone)


def a_used_node(one: Cluster) -> tuple[Any, Any, frozenset[int]]:
    """Ray's cluster, a node of it that is not the head and holds replicas, and their workers' process ids."""
    if not isinstance(one, OnNodes):
        raise TypeError("there are no nodes to harm")
    replicas = one.replicas()
    holding = {replica.node for replica in replicas}
    victim = next(node for node in one.raylets.worker_nodes if node.node_id in holding)
    gone = frozenset(replica.pid for replica in replicas if replica.node == victim.node_id)
    one.note = f"{len(gone)} of {len(replicas)} replicas were on it"
    return one.raylets, victim, gone


def node_ids(one: Cluster) -> set[str]:
    status = one.status()
    return {node.id for node in status.nodes} if status is not None else set()


def draining(one: Cluster) -> set[str]:
    """Ids of the nodes that are to go."""
    status = one.status()
    return {node.id for node in status.nodes if node.drained} if status is not None else set()


@contextmanager
def three_nodes(folder: Path) -> Iterator[Cluster]:
    """A head and two more nodes, which `serve` joins."""
    made: Any = ray.cluster_utils.Cluster
    raylets = made(initialize_head=True, head_node_args={"num_cpus": CPUS_OF_A_NODE, "include_dashboard": False})
    try:
        for _ in range(2):
            raylets.add_node(num_cpus=CPUS_OF_A_NODE)
        models = make_models(folder / "models")
        with cluster(models, folder / "state", "--address", raylets.address, cpus=None) as one:
            on_nodes = OnNodes(one.serving, one.models)
            on_nodes.raylets = raylets
            yield on_nodes
    finally:
        raylets.shutdown()
