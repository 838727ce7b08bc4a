"""What is asked of `shardline plan`, and what of a plan comes into model.yaml."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.planning.deployment import ModelPlan, Plan, StagePlan
from cluster.planning.machines import Node
from shardline.cli import main
from shardline.plan_view import elsewhere, out_of_bounds, served_as
from tests.cluster.planning.profiles import chain
from worker.gpu import memories
from worker.model_yaml import AutoscalingSection, ModelYaml, PlacementSection, read_model_yaml, write_model_yaml
from worker.per_stage import MIB
from worker.profile import artifact_key, write_profile

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


def profiled(models: Path, name: str, step_ms: list[float], **more: Any) -> Path:
    """A folder of which nothing but the profile is real enough to plan by."""
    version = models / name / "1"
    version.mkdir(parents=True)
    (version / "manifest.json").write_text("{}")
    profile = chain(step_ms, **more).model_copy(update={"artifact": artifact_key(version)})
    write_profile(version, profile)
    return models / name


def nodes_file(folder: Path) -> str:
    (folder / "nodes.yaml").write_text("nodes:\n  - {name: n, count: 2, cpus: 4, memory_gib: 4}\n")
    return str(folder / "nodes.yaml")


@pytest.mark.parametrize(
    ("autoscaling", "key", "bound", "mend"),
    [("{max: 1}", "max", 1, "raise it to {}, plan for less, or set it"), ("{min: 60, max: 60}", "min", 60, "lower it")],
)
def test_a_plan_that_autoscaling_would_not_leave_is_told_and_not_written(
    *, tmp_path: Path, autoscaling: str, key: str, bound: int, mend: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model, free = profiled(tmp_path, "m", [20.0]), profiled(tmp_path, "free", [20.0])
    text = f"autoscaling: {autoscaling}\n"
    (model / "model.yaml").write_text(text)
    asked = ["plan", f"{free}=1", f"{model}=60", "--nodes", nodes_file(tmp_path)]
    assert main([*asked, "--json"]) == 0
    ours: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["models"]
    count = ours[1]["stages"][0]["replicas"]
    told = f"autoscaling.{key}: stage 0: expected the plan's {count}, got {bound}: {mend.format(count)}"
    assert ours[0]["out_of_bounds"] == []
    assert ours[1]["out_of_bounds"][0].startswith(told)
    assert main(asked) == 0
    assert f"but not with its {told}" in capsys.readouterr().out
    assert main([*asked, "--write"]) == 1
    assert f"{model}/model.yaml: not written: {told}" in capsys.readouterr().err
    assert (model / "model.yaml").read_text() == text
    assert not (free / "model.yaml").exists(), "none is written where one cannot be"


def test_a_plan_within_the_bounds_of_autoscaling_is_written(tmp_path: Path) -> None:
    model = profiled(tmp_path, "m", [20.0])
    (model / "model.yaml").write_text("autoscaling: {min: 0, max: 60}\n")
    assert main(["plan", str(model), "--rate", "60", "--nodes", nodes_file(tmp_path), "--write"]) == 0
    assert 2 <= read_model_yaml(model / "model.yaml").stage_replicas[0] <= 60


def test_bounds_are_compared_stage_by_stage() -> None:
    scaling = AutoscalingSection(min=(1, 2), max=(1, 3))
    assert out_of_bounds(ModelYaml(stages=2, replicas=(1, 2), autoscaling=scaling)) == []
    high, low = out_of_bounds(ModelYaml(stages=2, replicas=(2, 1), autoscaling=scaling))
    assert high.startswith("autoscaling.max: stage 0")
    assert low.startswith("autoscaling.min: stage 1")


def asked(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[float | None]:
    """The latency in ms that is asked for of each model."""
    assert main(["plan", *arguments, "--json"]) == 0
    return [one["asked"]["p99_ms"] for one in json.loads(capsys.readouterr().out)["models"]]


def test_each_model_has_its_own_latency_or_that_of_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    two = [str(profiled(tmp_path, name, [5.0])) for name in "ab"]
    common = [*two, "--rate", "10", "--nodes", nodes_file(tmp_path)]
    assert asked(capsys, *common, "--p99", "500ms") == [500, 500]
    assert asked(capsys, *common, "--p99", "500ms", "--p99", "b=0.3s") == [500, pytest.approx(300)]
    assert asked(capsys, *common, "--p99", "a=300ms") == [pytest.approx(300), None]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["c=50ms"], "--p99: expected one of the models a, b, got 'c'; write it as NAME=TIME"),
        (["50ms", "60ms"], "--p99: expected one time for all models, got two; NAME=TIME is for one of them"),
        (["a=50ms", "a=60ms"], "--p99: expected one time for a, got two"),
    ],
)
def test_a_latency_for_nobody_or_twice_is_refused(
    tmp_path: Path, given: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    two = [str(profiled(tmp_path, name, [5.0])) for name in "ab"]
    options = [word for one in given for word in ("--p99", one)]
    assert main(["plan", *two, "--rate", "10", *options]) == 1
    assert told in capsys.readouterr().err


def test_without_a_nodes_file_this_machine_is_planned_for_with_its_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = profiled(tmp_path, "m", [20.0], devices=[("cuda", 20.0)])
    monkeypatch.setattr("shardline.planning.memories", lambda: (8 * 2**30,))
    assert main(["plan", str(model), "--rate", "100", "--json"]) == 0
    (stage,) = json.loads(capsys.readouterr().out)["models"][0]["stages"]
    assert (stage["device"], stage["gpus"], stage["nodes"]) == ("cuda", 1, ["this-machine"])


def test_where_torch_sees_no_gpu_there_is_none() -> None:
    assert len(memories()) == torch.cuda.device_count()


def test_of_a_gpu_what_is_free_counts_and_nothing_where_it_has_no_room_for_a_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def free_and_total(index: int) -> tuple[int, int]:
        if index:
            raise RuntimeError("CUDA error: out of memory")
        return 3 * 2**30, 80 * 2**30

    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.mem_get_info", free_and_total)
    assert memories() == (3 * 2**30, 0)
