"""What of a plan comes into model.yaml."""

from pathlib import Path

import pytest

from cluster.planning.deployment import ModelPlan, Plan, StagePlan
from cluster.planning.machines import Node
from shardline.plan_view import elsewhere, served_as
from worker.model_yaml import ModelYaml, PlacementSection, read_model_yaml, write_model_yaml
from worker.per_stage import MIB

NODES = (
    Node("old", 8.0, 2**34, device="old", labels=(("kind", "old"), ("zone", "a"))),
    Node("new", 8.0, 2**34, device="new", labels=(("kind", "new"), ("zone", "a"))),
)


def stage(device: str, memory: int, *, low: int = 0) -> StagePlan:
    return StagePlan(low, low + 1, device, 1, 0.5, 0, memory, (device,))


def two_stages() -> ModelPlan:
    return ModelPlan("m", (stage("old", 600 * MIB + 1), stage("new", 20 * MIB, low=1)), max_rows=8)


def test_each_stage_reserves_the_memory_that_was_planned_and_asks_for_its_kind_of_node(tmp_path: Path) -> None:
    write_model_yaml(tmp_path / "model.yaml", served_as(two_stages(), ModelYaml(), NODES))
    served = read_model_yaml(tmp_path / "model.yaml")
    assert [served.stage(place).bundle for place in (0, 1)] == [
        {"CPU": 0.5, "memory": 601.0 * MIB},
        {"CPU": 0.5, "memory": 20.0 * MIB},
    ]
    assert [served.stage(place).labels for place in (0, 1)] == [{"kind": "old"}, {"kind": "new"}]


def test_what_is_the_same_for_every_stage_is_written_once() -> None:
    plan = ModelPlan("m", (stage("old", MIB), stage("old", MIB, low=1)), max_rows=8)
    served = served_as(plan, ModelYaml(), NODES)
    assert (served.cpus, served.memory_mib, served.placement.labels) == (0.5, 1, {"kind": "old"})


@pytest.mark.parametrize(
    ("nodes", "labels"),
    [(NODES, ({"zone": "a", "kind": "old"}, {"zone": "a", "kind": "new"})), (NODES[:1], {"zone": "a"})],
)
def test_labels_of_the_operator_stay_and_those_of_an_earlier_plan_go(nodes: tuple[Node, ...], labels: object) -> None:
    before = ModelYaml(placement=PlacementSection(labels={"zone": "a", "kind": "new"}))
    plan = two_stages() if len(nodes) > 1 else ModelPlan("m", (stage("old", MIB),), max_rows=8)
    alone = tuple(Node(one.name, one.cpus, one.memory, device=one.device, labels=one.labels[:1]) for one in nodes)
    assert served_as(plan, before, alone).placement.labels == labels


def test_where_no_label_tells_the_kinds_apart_the_plan_says_so() -> None:
    bare = tuple(Node(one.name, one.cpus, one.memory, device=one.device) for one in NODES)
    plan = Plan((two_stages(),), (), 1.0, 1.0, "", nodes=bare)
    assert served_as(plan.models[0], ModelYaml(), bare).placement.labels == {}
    told = elsewhere(plan)
    assert len(told) == 2
    assert told[0].startswith("m stage 0 was planned for nodes with old, and no label")
    assert elsewhere(Plan((two_stages(),), (), 1.0, 1.0, "", nodes=NODES)) == []
