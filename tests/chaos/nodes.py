"""Harm to a node: its raylet and all its workers die at once. Three raylets on this machine, as Ray itself tests."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import ray.cluster_utils

from tests.chaos.case import Recovered
from tests.chaos.cluster import Cluster, cluster, make_models

CPUS_OF_A_NODE: Final = 1.0
"""Room for four replicas: two nodes hold all six."""


class OnNodes(Cluster):
    """`raylets`: Ray's `Cluster` below it."""

    raylets: Any


def kill_a_node(one: Cluster) -> Recovered:
    """One that is not the head and holds replicas."""
    if not isinstance(one, OnNodes):
        raise TypeError("there are no nodes to kill")
    replicas = one.replicas()
    holding = {replica.node for replica in replicas}
    victim = next(node for node in one.raylets.worker_nodes if node.node_id in holding)
    gone = frozenset(replica.pid for replica in replicas if replica.node == victim.node_id)
    one.note = f"{len(gone)} of {len(replicas)} replicas were on it"
    one.raylets.remove_node(victim, allow_graceful=False)
    return lambda: one.is_whole(without=gone)


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
