from cluster.fleet import Node
from cluster.placement import Placed, choose_node, seat, why_no_room, why_nowhere
from cluster.world import Stage
from worker.per_stage import MIB, StageSettings

FIRST, SECOND, OTHER = Stage("m", 1, 0), Stage("m", 1, 1), Stage("n", 1, 0)
CPU = {"CPU": 1.0}
ONE = StageSettings(1.0, "cpu", {}, {})
NODES = tuple(Node(name, "127.0.0.1", {"CPU": 2.0}) for name in "abc")


def test_replicas_of_one_stage_sit_apart() -> None:
    assert choose_node(FIRST, ONE, NODES, [Placed(FIRST, "a", CPU), Placed(FIRST, "b", CPU)]) == "c"


def test_stages_that_talk_sit_together() -> None:
    assert choose_node(SECOND, ONE, NODES, [Placed(OTHER, "a", CPU), Placed(FIRST, "b", CPU)]) == "b"


def test_apart_goes_before_together() -> None:
    placed = [Placed(FIRST, "a", CPU), Placed(SECOND, "a", {"CPU": 0.5})]
    assert choose_node(SECOND, StageSettings(0.5, "cpu", {}, {}), NODES[:2], placed) == "b"


def test_what_is_full_is_left_alone_and_no_room_is_no_node() -> None:
    full = [Placed(OTHER, name, {"CPU": 2.0}) for name in "ab"]
    assert choose_node(FIRST, ONE, NODES, full) == "c"
    assert choose_node(FIRST, ONE, NODES[:2], full) is None


def test_strangers_fill_up_what_is_used_so_that_empty_nodes_can_go() -> None:
    assert choose_node(FIRST, ONE, NODES, [Placed(OTHER, "b", CPU)]) == "b"


def test_a_node_that_is_drained_gets_nothing_new() -> None:
    nodes = (Node("a", "127.0.0.1", {"CPU": 2.0}, drained=True), NODES[1])
    assert choose_node(FIRST, ONE, nodes, [Placed(FIRST, "b", CPU)]) == "b"
    assert choose_node(FIRST, ONE, nodes[:1], []) is None


def test_a_node_where_the_stage_failed_to_start_is_the_last_choice() -> None:
    placed = [Placed(FIRST, "a", CPU)]
    assert choose_node(FIRST, ONE, NODES[:2], placed, shunned={"b"}) == "a"
    assert choose_node(FIRST, ONE, NODES[:1], placed, shunned={"a"}) == "a"


def test_to_be_alone_of_ones_stage_is_better_than_company_and_company_better_than_a_node_that_could_go() -> None:
    placed = [Placed(FIRST, "a", CPU), Placed(FIRST, "b", CPU), Placed(SECOND, "b", CPU), Placed(FIRST, "c", CPU)]
    ranked = sorted((placed[0], placed[1], placed[3]), key=lambda one: seat(one, placed, heads={"c"}))
    assert [one.node for one in ranked] == ["a", "b", "c"]
    crowded = [*placed, Placed(FIRST, "c", CPU)]
    assert min(crowded, key=lambda one: seat(one, crowded, heads={"c"})).node == "c"


def test_memory_that_is_reserved_is_room_that_is_taken() -> None:
    nodes = tuple(Node(name, "127.0.0.1", {"CPU": 8.0, "memory": 1000.0 * MIB}) for name in "ab")
    first, second = (StageSettings(1.0, "cpu", {}, {}, memory_mib=600) for _ in range(2))
    assert choose_node(SECOND, second, nodes, [Placed(FIRST, "a", first.bundle)]) == "b", "together would be better"
    assert choose_node(SECOND, second, nodes[:1], [Placed(FIRST, "a", first.bundle)]) is None
    assert choose_node(SECOND, ONE, nodes, [Placed(FIRST, "a", first.bundle)]) == "a"
    assert why_nowhere(second, nodes) == ""
    assert why_nowhere(StageSettings(1.0, "cpu", {}, {}, memory_mib=1001), nodes).startswith(
        "a replica takes 1001 MiB memory, and the largest node has 1000 MiB; lower it in model.yaml"
    )
    assert "CPU: 1, memory: 600 MiB" in why_no_room(second)


def test_labels_and_resources_choose_the_kind_of_node() -> None:
    nodes = (*NODES, Node("d", "127.0.0.1", {"CPU": 8.0, "accelerator": 1.0}, {"zone": "east"}))
    assert choose_node(FIRST, StageSettings(1.0, "cpu", {"accelerator": 1.0}, {}), nodes, []) == "d"
    assert choose_node(FIRST, StageSettings(1.0, "cpu", {}, {"zone": "east"}), nodes, []) == "d"
    assert choose_node(FIRST, StageSettings(1.0, "cpu", {}, {"zone": "west"}), nodes, []) is None


def test_what_fits_no_node_at_all_is_told_with_what_to_do() -> None:
    assert why_nowhere(ONE, NODES) == ""
    assert "a replica takes 64 CPU, and the largest node has 2; lower it" in why_nowhere(
        StageSettings(64.0, "cpu", {}, {}), NODES
    )
    assert "no node of the cluster has a GPU" in why_nowhere(StageSettings(1.0, "cuda", {}, {}), NODES)
    assert "no node has the labels zone: east" in why_nowhere(StageSettings(1.0, "cpu", {}, {"zone": "east"}), NODES)
    mixed = (Node("a", "", {"CPU": 1.0, "x": 1.0}), Node("b", "", {"CPU": 4.0}))
    assert "no single node has CPU: 2, x: 1;" in why_nowhere(StageSettings(2.0, "cpu", {"x": 1.0}, {}), mixed)
