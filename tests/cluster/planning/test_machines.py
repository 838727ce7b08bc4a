"""The nodes file."""

import pytest

from cluster.planning.machines import Node, parse_nodes, this_machine
from worker.errors import InvalidRequest


def test_a_node_kind_stands_for_its_count() -> None:
    nodes = parse_nodes(
        b"nodes:\n  - {name: small, count: 2, cpus: 8, memory_gib: 32, labels: {zone: a, kind: s}}\n"
        b"  - {name: gpu, cpus: 16, memory_gib: 64, gpus: 1, gpu_memory_gib: 80, network_gbit: 25}\n",
        "nodes.yaml",
    )
    assert [node.name for node in nodes] == ["small-0", "small-1", "gpu"]
    assert nodes[0].memory == 32 * 2**30
    assert [node.labels for node in nodes] == [(("kind", "s"), ("zone", "a"))] * 2 + [()]
    assert nodes[2].network == 25e9 / 8


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "expected `nodes:`"),
        ("nodes: []", "nodes: "),
        ("nodes:\n  - {name: a, cpu: 8, memory_gib: 1}", "unknown key; did you mean cpus?"),
        ("nodes:\n  - {name: a, memory_gib: 1}", "nodes.0.cpus: missing"),
        ("nodes:\n  - {name: a, cpus: -1, memory_gib: 1}", "nodes.0.cpus: Input should be greater than 0, got -1"),
        ("nodes:\n  - {name: a, cpus: .nan, memory_gib: 1}", "nodes.0.cpus"),
        ("nodes:\n  - {name: 'a b', cpus: 1, memory_gib: 1}", "nodes.0.name"),
        ("nodes:\n  - {name: a, cpus: 1, memory_gib: 1, gpus: 1}", "gpus without gpu_memory_gib"),
        ("nodes:\n  - {name: a, cpus: 1, memory_gib: 1}\n  - {name: a, cpus: 1, memory_gib: 1}", "two are named 'a'"),
        ("nodes:\n  - &a {name: a, cpus: 1, memory_gib: 1}\n  - *a", "aliases"),
        ("nodes: [", "not YAML"),
        (
            "nodes:\n  - {name: a, cpus: 1, memory_gib: 1, labels: [kind]}",
            "nodes.0.labels: expected names and values such as {kind: small}, got ['kind']",
        ),
        (
            "nodes:\n  - {name: a, cpus: 1, memory_gib: 1, labels: {kind: 3}}",
            "nodes.0.labels: expected names and values",
        ),
        ("nodes:\n  - {name: a, count: 1000000000, cpus: 1, memory_gib: 1}", "nodes.0.count"),
    ],
)
def test_what_is_wrong_is_named(text: str, told: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        parse_nodes(text.encode(), "nodes.yaml")
    assert told in str(error.value)
    assert "nodes.yaml" in str(error.value)


@pytest.mark.parametrize(
    ("gpus", "count", "each"), [((), 0, 0), ((80 * 2**30,), 1, 80 * 2**30), ((24 * 2**30, 16 * 2**30), 2, 16 * 2**30)]
)
def test_this_machine_is_a_node_with_its_gpus_each_with_what_all_of_them_have(
    gpus: tuple[int, ...], count: int, each: int
) -> None:
    assert this_machine(2**34, 4, gpus) == (Node("this-machine", 4.0, 2**34, gpus=count, gpu_memory=each),)
