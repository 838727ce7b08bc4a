"""Where replicas go."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.planning.machines import Node
from cluster.planning.packing import Need, Room

GIB = 2**30

NODES = st.lists(
    st.builds(
        lambda index, cpus, memory, gpus: (cpus, memory, gpus),
        st.none(),
        st.integers(1, 8),
        st.integers(1, 16),
        st.integers(0, 2),
    ),
    min_size=1,
    max_size=5,
)
NEEDS = st.lists(
    st.builds(
        lambda cpus, memory, gpu: Need("cuda" if gpu else "cpu", cpus, memory * GIB, int(gpu), memory * GIB),
        st.sampled_from([0.25, 0.5, 1.0, 2.0, 4.0]),
        st.integers(1, 8),
        st.booleans(),
    ),
    max_size=40,
)


@settings(deadline=None)
@given(NODES, NEEDS, st.booleans())
def test_no_node_gets_more_than_it_has(shapes: list[tuple[int, int, int]], needs: list[Need], tight: bool) -> None:
    nodes = [
        Node(f"n{place}", float(cpus), memory * GIB, gpus, 8 * GIB) for place, (cpus, memory, gpus) in enumerate(shapes)
    ]
    room = Room(nodes, tight=tight)
    taken = [(need, room.place(need)) for need in needs]
    for node in nodes:
        here = [need for need, name in taken if name == node.name]
        assert sum(need.cpus for need in here) <= node.cpus + 1e-6
        assert sum(need.memory for need in here) <= node.memory
        assert sum(need.gpus for need in here) <= node.gpus
    refused = [need for need, name in taken if name is None]
    for need in refused:
        assert room.place(need) is None
        assert room.shortage(need)


def test_replicas_of_a_stage_sit_apart() -> None:
    room = Room([Node(f"n{place}", 4, GIB) for place in range(4)])
    apart: Counter[str] = Counter()
    for _ in range(4):
        name = room.place(Need("cpu", 1.0, 1), apart=apart)
        assert name is not None
        apart[name] += 1
    assert set(apart.values()) == {1}


def test_stages_that_talk_sit_together() -> None:
    room = Room([Node(f"n{place}", 4, GIB) for place in range(4)])
    assert room.place(Need("cpu", 1.0, 1), near=["n2"]) == "n2"


def test_tight_fills_what_is_in_use_first() -> None:
    room = Room([Node(f"n{place}", 2, GIB) for place in range(3)], tight=True)
    assert {room.place(Need("cpu", 1.0, 1)) for _ in range(2)} == {"n0"}


@pytest.mark.parametrize(
    ("need", "told"),
    [
        (Need("tpu", 1.0, 1), "no node has a device 'tpu'"),
        (Need("cpu", 1.0, 2 * GIB), "it needs 2.00 GiB of memory"),
        (Need("cpu", 9.0, 1), "it needs 9 CPUs"),
    ],
)
def test_a_shortage_is_named(need: Need, told: str) -> None:
    assert told in Room([Node("n", 4, GIB)]).shortage(need)
