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
        decisions=[
            control_pb2.Decision(unix_s=1.7e9 + number, what=what, why=why)
            for number, (what, why) in enumerate(
                [("start minilm/1/0/a1b2c3", "it has 0 of 2"), ("publish route table 1", "minilm/1 is ready")]
            )
        ],
        nodes=[
            control_pb2.NodeStatus(
                id="n",
                address="127.0.0.1",
                resources={"CPU": 2.0, "memory": 1e9},
                taken={"CPU": 1.5},
                replicas=2,
                labels={"zone": "east"},
            )
        ],
    )


def shown(status: control_pb2.ClusterStatus) -> str:
    console = Console(width=120)
    with console.capture() as captured:
        console.print(rendered(status))
    return captured.get()


def test_people_see_how_fast_refusals_are_where_there_are_any() -> None:
    status = a_status()
    assert "0.0 refused/s\n" in shown(status)
    status.models[0].refused_per_s, status.models[0].refusal_p99_ms = 84.0, 3.25
    assert "84.0 refused/s (p99 3.2 ms)" in shown(status)


def test_people_see_each_replica_and_each_empty_stage() -> None:
    text = shown(a_status())
    assert "minilm/1 ready" in text
    (row,) = (line for line in text.splitlines() if "4321" in line)
    assert row.split() == ["0", "(1/2)", "a1b2c3", "ready", "4321", "3", "4.20", "1000", "4.0", "7", "0", "1024"]
    assert any(line.split() == ["1", "(0/1)", "none"] for line in text.splitlines())
    assert "start minilm/1/0/a1b2c3, because it has 0 of 2" in text
    assert "node n 127.0.0.1: 2 replicas take 1.5 of 2 CPU [zone=east]" in text


def test_people_see_which_node_each_replica_is_on_and_which_node_is_drained() -> None:
    status = a_status()
    first, second = "1" * 56, "2" * 56
    replica = status.models[0].stages[0].replicas[0]
    replica.node = first
    assert first[:8] not in shown(status).partition("route table")[0], "with one node there is nothing to tell"
    del status.nodes[:]
    for name in (first, second):
        status.nodes.add(id=name, address="10.0.0.1", resources={"CPU": 2.0, "memory": 4 * 2**30}, taken={"CPU": 1.0})
    status.nodes[0].drained = True
    status.nodes[1].taken["memory"] = 2**29
    status.models[0].stages[1].replicas.add(id="minilm/1/1/d4e5f6", state="starting")
    text = shown(status)
    (row,) = (line for line in text.splitlines() if "4321" in line)
    assert row.split()[3:8] == ["ready", "4321", "11111111", "(drained)", "3"]
    (other,) = (line for line in text.splitlines() if "d4e5f6" in line)
    assert other.split()[3:5] == ["starting", "0"]
    assert "node 11111111 (drained) 10.0.0.1: 0 replicas take 1 of 2 CPU\n" in text
    assert "node 22222222 10.0.0.1: 0 replicas take 1 of 2 CPU, 0.5 of 4.0 GiB memory\n" in text
    replica.node = "3" * 56
    assert "33333333" in shown(status), "its node is not seen any more"


def test_where_lines_are_few_the_oldest_decisions_are_not_seen() -> None:
    text = shown(a_status())
    assert text.index("node n 127.0.0.1") < text.index("publish route table 1") < text.index("start minilm/1/0/a1b2c3")


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
    assert (model["stages"][1]["desired"], model["stages"][1]["replicas"]) == (1, [])
    replica = model["stages"][0]["replicas"][0]
    assert set(replica) == {field.name for field in control_pb2.ReplicaStatus.DESCRIPTOR.fields}
    assert replica["resident_bytes"] == 2**30
    assert status["nodes"][0]["resources"] == {"CPU": 2.0, "memory": 1e9}


def test_people_see_what_is_asked_how_it_is_scaled_and_where_a_roll_out_stands() -> None:
    status = a_status()
    model = status.models[0]
    model.revision, model.rollout = 3, "revision 4 of minilm gets 10 % of the requests; it is watched"
    model.requests_per_s, model.p50_ms, model.p99_ms, model.inflight = 120.5, 8.25, 31, 7
    stage = model.stages[0]
    stage.min, stage.max, stage.rows_per_s, stage.queued_rows, stage.busy, stage.wanted = 1, 6, 240, 12, 1.75, 2
    text = shown(status)
    assert "minilm/1 (revision 3) ready" in text
    assert "roll-out: revision 4 of minilm gets 10 % of the requests" in text
    assert "120.5 requests/s  p50 8.2 ms  p99 31.0 ms  7 in flight" in text
    assert "stage 0 is scaled between 1 and 6: 240.0 rows/s, 12 rows queued, 1.75 replicas' worth of computing" in text
    assert "stage 0: 2 more are needed, and there is no room" in text
