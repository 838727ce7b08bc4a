"""Which labels bring a stage to the kind of node that it was planned for."""

import pytest

from cluster.planning.deployment import StagePlan
from cluster.planning.kinds import labels_for, telling
from cluster.planning.machines import Node


def node(name: str, device: str = "cpu", *, speed: float = 1.0, gpus: int = 0, **labels: str) -> Node:
    return Node(name, 8.0, 2**30, device=device, speed=speed, gpus=gpus, labels=tuple(sorted(labels.items())))


def stage(*nodes: str, device: str = "cpu", gpus: int = 0) -> StagePlan:
    return StagePlan(0, 1, device, 1, 1.0, gpus, 2**20, nodes)


OLD = node("old", "old", kind="o", zone="a")
NEW = node("new", "new", kind="n", zone="a")
NEWER = node("newer", "new", kind="n", zone="b")
FAST = node("fast", "new", speed=2.0, kind="f", zone="b")
BARE = node("bare", "old")


@pytest.mark.parametrize(
    ("planned", "nodes", "labels"),
    [
        (stage("old"), (OLD,), {}),
        (stage("new"), (NEW, NEWER), {}),
        (stage("new"), (OLD, NEW, NEWER), {"kind": "n"}),
        (stage("new", "newer"), (OLD, NEW, NEWER), {"kind": "n"}),
        (stage("old", "new"), (OLD, NEW, NEWER), {}),
        (stage("old", "new"), (OLD, NEW, FAST), {"zone": "a"}),
        (stage("fast"), (OLD, NEW, NEWER, FAST), {"kind": "f"}),
        (stage("bare"), (BARE, NEW), None),
        (stage("new"), (BARE, NEW), {"kind": "n"}),
        (stage("old", "fast"), (OLD, NEW, FAST), None),
    ],
)
def test_a_stage_finds_its_kind_by_the_labels_that_only_those_have(
    planned: StagePlan, nodes: tuple[Node, ...], labels: dict[str, str] | None
) -> None:
    assert labels_for(planned, nodes) == labels


def test_two_labels_may_tell_together_what_neither_tells_alone() -> None:
    nodes = (node("x", "x", a="1", b="1"), node("y", "y", a="1", b="2"), node("z", "z", a="2", b="1"))
    assert labels_for(stage("x"), nodes) == {"a": "1", "b": "1"}


def test_a_stage_that_takes_a_gpu_comes_to_no_node_without_one_anyway() -> None:
    gpu = Node("gpu", 8.0, 2**30, gpus=1, gpu_memory=2**30, gpu_device="cuda")
    assert labels_for(stage("gpu", device="cuda", gpus=1), (OLD, gpu)) == {}


def test_names_that_tell_kinds_apart_are_those_whose_values_belong_to_one_kind_each() -> None:
    assert telling((OLD, NEW, NEWER, FAST)) == {"kind"}
    assert telling((NEW, NEWER)) == {"kind", "zone"}
    assert telling((BARE,)) == set()
