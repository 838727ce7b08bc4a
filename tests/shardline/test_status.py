import json

from rich.console import Console

from protos import control_pb2
from shardline.status import as_line, rendered


def a_status(*, ready: bool = True, reason: str = "") -> control_pb2.ClusterStatus:
    replica = control_pb2.ReplicaStatus(
        id="minilm/1/0/a1b2c3",
        state="ready",
        address="127.0.0.1:4000",
        pid=4321,
        queued_rows=3,
        seconds_per_row=0.0042,
        computed_rows=1000,
        computed_batches=250,
        dropped_expired=1,
        dropped_cancelled=2,
        refused=4,
        resident_bytes=2**30,
    )
    stages = [
        control_pb2.StageStatus(stage=0, desired=2, replicas=[replica]),
        control_pb2.StageStatus(stage=1, desired=1),
    ]
    return control_pb2.ClusterStatus(
        generation=2**40,
        models=[control_pb2.ModelStatus(model="minilm", version="1", ready=ready, reason=reason, stages=stages)],
        decisions=[control_pb2.Decision(unix_s=1.7e9, what="start minilm/1/0/a1b2c3", why="it has 0 of 2")],
        nodes=[control_pb2.NodeStatus(id="n", address="127.0.0.1", resources={"CPU": 2.0})],
    )


def shown(status: control_pb2.ClusterStatus) -> str:
    console = Console(width=120)
    with console.capture() as captured:
        console.print(rendered(status))
    return captured.get()


def test_people_see_each_replica_and_each_empty_stage() -> None:
    text = shown(a_status())
    assert "minilm/1 ready" in text
    (row,) = (line for line in text.splitlines() if "4321" in line)
    assert row.split() == ["0", "(1/2)", "a1b2c3", "ready", "4321", "3", "4.20", "1000", "4.0", "7", "0", "1024"]
    assert any(line.split() == ["1", "(0/1)", "none"] for line in text.splitlines())
    assert "start minilm/1/0/a1b2c3, because it has 0 of 2" in text
    assert "nodes: 127.0.0.1 (2 CPU)" in text


def test_people_see_why_a_model_is_not_ready_or_lacks_replicas() -> None:
    assert "minilm/1 not ready: stage 1 has no ready replica" in shown(
        a_status(ready=False, reason="stage 1 has no ready replica")
    )
    assert "minilm/1 ready: stage 0 waits: no room" in shown(a_status(reason="stage 0 waits: no room"))


def test_people_see_why_a_stage_runs_uncompiled() -> None:
    status = a_status()
    status.models[0].stages[0].replicas[0].note = "nothing is compiled for this stage"
    assert "stage 0 runs uncompiled: nothing is compiled for this stage" in shown(status)


def test_machines_get_every_fact_with_numbers_as_numbers() -> None:
    line = as_line(a_status())
    assert "\n" not in line
    status = json.loads(line)
    assert status["generation"] == 2**40
    (model,) = status["models"]
    assert model["stages"][1] == {"stage": 1, "desired": 1, "replicas": []}
    replica = model["stages"][0]["replicas"][0]
    assert set(replica) == {field.name for field in control_pb2.ReplicaStatus.DESCRIPTOR.fields}
    assert replica["resident_bytes"] == 2**30
    assert status["nodes"] == [{"id": "n", "address": "127.0.0.1", "resources": {"CPU": 2.0}}]
