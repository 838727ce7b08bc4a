import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from grpc import aio

from cluster.control_server import ControlServer
from cluster.controller import KEPT_DECISIONS, Controller
from cluster.fleet import Node, Sighting
from cluster.kept_code import KeptCode
from cluster.simulated_fleet import SimulatedFleet
from cluster.state import ServedModel, State, StateDir
from cluster.status import cluster_status
from cluster.store import FileStore
from cluster.world import Phase
from protos import control_pb2, control_pb2_grpc
from worker.errors import Unavailable
from worker.model_yaml import ModelYaml
from worker.nouns import Axis, Signature, TensorSpec

TOKEN = "0123456789abcdef"
SIGNATURE = Signature(
    (TensorSpec("text", "BYTES", ("batch",)),), (TensorSpec("vector", "FP32", ("batch", 384)),), (Axis("batch", 1, 8),)
)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def a_state(tmp_path: Path, *, stages: int = 2, replicas: int = 2) -> tuple[FileStore, State]:
    config = ModelYaml(stages=stages, replicas=replicas, deadline_s=7)
    served = ServedModel(config=config, replicas={1: config.stage_replicas}, signatures={1: SIGNATURE})
    (tmp_path / "models" / "minilm" / "1").mkdir(parents=True, exist_ok=True)
    (tmp_path / "models" / "minilm" / "model.yaml").write_text(
        f"{{stages: {stages}, replicas: {replicas}, deadline_s: 7}}"
    )
    folder = FileStore(StateDir(tmp_path / "state"))
    folder.claim()
    state = State(repository=str(tmp_path / "models"), host="127.0.0.1", token=TOKEN, models={"minilm": served})
    folder.write_state(state)
    return folder, state


async def settle(controller: Controller, until: Callable[[], bool], steps: int = 100) -> None:
    for _ in range(steps):
        await controller.step()
        if until():
            return
    pytest.fail(f"not so after {steps} steps: {list(controller.decisions)[-5:]}")


def is_ready(controller: Controller) -> bool:
    table = controller.feed.table
    return table is not None and all(model.ready for model in table.models)


def ready(fleet: SimulatedFleet) -> int:
    return sum(replica.takes_work for replica in fleet.replicas.values())


async def test_from_nothing_to_ready(tmp_path: Path) -> None:
    fleet = SimulatedFleet()
    folder, state = a_state(tmp_path)
    controller = Controller(fleet, folder, state)
    await settle(controller, lambda: is_ready(controller) and ready(fleet) == 4)
    await settle(
        controller, lambda: controller.feed.table is not None and len(controller.feed.table.models[0].replicas) == 2
    )
    table = controller.feed.table
    assert table is not None
    model = table.models[0]
    assert (model.model, model.version, model.reason) == ("minilm", "1", "")
    assert model.signature.inputs[0].shape[0].axis == "batch"
    assert model.signature.outputs[0].shape[1].size == 384
    assert model.signature.axes[0].maximum == 8
    assert model.limits.default_deadline_s == 7
    assert model.limits.batched
    assert not await controller.step(), "a step that finds all as wanted does nothing"


async def test_a_controller_that_comes_back_restarts_nobody_and_keeps_counting_generations(tmp_path: Path) -> None:
    fleet = SimulatedFleet()
    folder, state = a_state(tmp_path)
    first = Controller(fleet, folder, state)
    await settle(first, lambda: is_ready(first) and ready(fleet) == 4)
    first.scale("minilm", 1, 3)
    await settle(first, lambda: ready(fleet) == 5)
    before, started = set(fleet.replicas), len(fleet.calls)
    fleet.forget()
    second = Controller(fleet, folder, folder.read_state())
    assert second.feed.table is None, "gateways keep what they have until the workers were seen"
    await settle(second, lambda: is_ready(second) and ready(fleet) == 5)
    assert set(fleet.replicas) == before
    assert len(fleet.calls) == started
    assert first.feed.table is not None
    assert second.feed.table is not None
    assert second.feed.table.generation > first.feed.table.generation


async def test_a_stage_whose_replicas_die_at_once_backs_off_and_says_why(tmp_path: Path) -> None:
    clock = Clock()
    fleet = SimulatedFleet()
    folder, state = a_state(tmp_path, stages=1, replicas=1)
    controller = Controller(fleet, folder, state, monotonic=clock)
    for _ in range(3):
        await settle(controller, lambda: bool(fleet.replicas))
        fleet.kill(next(iter(fleet.replicas)), "ArtifactError: models/minilm/1/program.pt2: damaged")
        await controller.step()
        clock.now += 1.5
    starts = len(fleet.calls)
    await controller.step()
    await controller.step()
    status = cluster_status(controller)
    assert len(fleet.calls) == starts, "it waits"
    assert not status.models[0].ready
    assert "its replicas die one after the other, the last: ArtifactError: models/minilm/1/program.pt2: damaged" in (
        status.models[0].reason
    )
    clock.now += 60
    await settle(controller, lambda: is_ready(controller))


async def test_a_replica_that_served_a_while_is_replaced_at_once(tmp_path: Path) -> None:
    clock = Clock()
    fleet = SimulatedFleet()
    folder, state = a_state(tmp_path, stages=1, replicas=1)
    controller = Controller(fleet, folder, state, monotonic=clock)
    for _ in range(5):
        await settle(controller, lambda: is_ready(controller) and ready(fleet) == 1)
        clock.now += 20
        await controller.step()
        fleet.kill(next(iter(fleet.replicas)))
        await controller.step()
        assert [replica.phase for replica in fleet.replicas.values()] == [Phase.PENDING]


async def test_a_replica_without_room_is_shown_with_the_reason(tmp_path: Path) -> None:
    fleet = SimulatedFleet(room=2)
    folder, state = a_state(tmp_path, stages=1, replicas=3)
    controller = Controller(fleet, folder, state)
    await settle(controller, lambda: is_ready(controller) and ready(fleet) == 2)
    await controller.step()
    status = cluster_status(controller)
    assert status.models[0].ready
    assert status.models[0].reason == "stage 0 waits: no room"
    assert any(decision.what == "wait with minilm/1 stage 0" for decision in controller.decisions)


async def test_the_status_says_which_nodes_are_drained(tmp_path: Path) -> None:
    folder, state = a_state(tmp_path)
    controller = Controller(SimulatedFleet(), folder, state)
    controller.sighting = Sighting((), nodes=(Node("a", "", {}, drained=True), Node("b", "", {})))
    assert [(node.id, node.drained) for node in cluster_status(controller).nodes] == [("a", True), ("b", False)]


async def test_stop_returns_when_every_replica_has_drained(tmp_path: Path) -> None:
    fleet = SimulatedFleet()
    folder, state = a_state(tmp_path)
    controller = Controller(fleet, folder, state)
    await settle(controller, lambda: is_ready(controller) and ready(fleet) == 4)
    stopping = asyncio.create_task(controller.stop())
    await asyncio.sleep(0)
    await settle(controller, lambda: not fleet.replicas)
    await controller.step()
    await stopping
    assert [call for call, _ in fleet.calls if call != "start"].count("drain") == 4
    assert folder.read_state().stopping
    assert controller.feed.table is not None
    assert controller.feed.table.stopping
    with pytest.raises(Unavailable, match="the cluster is stopping"):
        controller.scale("minilm", None, 3)


async def test_a_changed_file_is_told_once_and_changes_nothing(tmp_path: Path) -> None:
    clock = Clock()
    fleet = SimulatedFleet()
    folder, state = a_state(tmp_path)
    controller = Controller(fleet, folder, state, monotonic=clock)
    await settle(controller, lambda: is_ready(controller))
    (tmp_path / "models" / "minilm" / "2").mkdir()
    for _ in range(3):
        clock.now += 3
        await controller.step()
    told = [decision.why for decision in controller.decisions if decision.what == "serve on as before"]
    assert told == [f"{tmp_path}/models/minilm/2 appeared; version 1 is served until `shardline rollout minilm`"]


async def test_only_the_newest_decisions_are_kept(tmp_path: Path) -> None:
    folder, state = a_state(tmp_path)
    controller = Controller(SimulatedFleet(), folder, state)
    for count in range(KEPT_DECISIONS + 10):
        controller.scale("minilm", 0, 1 + count % 9)
    assert len(controller.decisions) == KEPT_DECISIONS


class FailingFleet(SimulatedFleet):
    def __init__(self, failures: int) -> None:
        super().__init__()
        self.failures = failures

    async def observe(self):  # type: ignore[no-untyped-def]
        if self.failures:
            self.failures -= 1
            raise ConnectionError("Ray is away")
        return await super().observe()


async def test_a_step_that_fails_is_told_and_tried_again(tmp_path: Path) -> None:
    folder, state = a_state(tmp_path)
    controller = Controller(FailingFleet(3), folder, state, step_interval_s=0)
    keeping = asyncio.create_task(controller.run_forever())
    async with asyncio.timeout(20):
        async for table in controller.feed.watch():
            if table.models[0].ready:
                break
    keeping.cancel()
    assert [decision.why for decision in controller.decisions if decision.what == "try again"] == [
        "a step failed: Ray is away"
    ] * 3


async def test_a_controller_that_only_fails_gives_up(tmp_path: Path) -> None:
    folder, state = a_state(tmp_path)
    with pytest.raises(ConnectionError):
        await asyncio.wait_for(Controller(FailingFleet(1000), folder, state, step_interval_s=0).run_forever(), 20)


def a_server(controller: Controller) -> ControlServer:
    repository = Path(controller.state.repository)
    return ControlServer(controller, TOKEN, KeptCode(repository / "kept", repository))


@asynccontextmanager
async def listening(controller: Controller) -> AsyncIterator[tuple[ControlServer, control_pb2_grpc.ControllerStub]]:
    server = a_server(controller)
    port = await server.start("127.0.0.1", 0)
    try:
        async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield server, control_pb2_grpc.ControllerStub(channel)  # type: ignore[no-untyped-call]
    finally:
        await server.close(0)


BEARER = (("authorization", f"Bearer {TOKEN}"),)


async def test_watchers_get_the_table_and_every_change(tmp_path: Path) -> None:
    folder, state = a_state(tmp_path, stages=1, replicas=1)
    fleet = SimulatedFleet()
    controller = Controller(fleet, folder, state)
    async with listening(controller) as (_, stub):
        watch = stub.WatchRoutes(control_pb2.WatchRoutesRequest(), metadata=BEARER)
        await controller.step()
        first = await asyncio.wait_for(watch.read(), 10)
        assert not first.models[0].ready
        await settle(controller, lambda: is_ready(controller))
        table = first
        while not table.models[0].ready:
            table = await asyncio.wait_for(watch.read(), 10)
        assert [replica.address for replica in table.models[0].replicas] == ["host:minilm/1/0/0000"]
        late = stub.WatchRoutes(control_pb2.WatchRoutesRequest(), metadata=BEARER)
        assert await asyncio.wait_for(late.read(), 10) == table


@pytest.mark.parametrize("offered", [(), (("authorization", "Bearer wrong"),), (("authorization", TOKEN),)])
async def test_who_does_not_hold_the_token_is_refused_everything(
    tmp_path: Path, offered: tuple[tuple[str, str], ...], caplog: pytest.LogCaptureFixture
) -> None:
    folder, state = a_state(tmp_path)
    controller = Controller(SimulatedFleet(), folder, state)
    await controller.step()
    async with listening(controller) as (_, stub):
        calls = [
            stub.GetStatus(control_pb2.GetStatusRequest(), metadata=offered),
            stub.Scale(control_pb2.ScaleRequest(model="minilm", stage=-1, replicas=1), metadata=offered),
            stub.Stop(control_pb2.StopRequest(), metadata=offered),
            stub.WatchRoutes(control_pb2.WatchRoutesRequest(), metadata=offered).read(),
        ]
        for call in calls:
            with pytest.raises(aio.AioRpcError) as caught:
                await asyncio.wait_for(call, 10)
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert not controller.state.stopping
    assert len([record for record in caplog.records if "does not hold the cluster's token" in record.message]) == 1


async def test_scale_over_the_wire_changes_what_is_wanted_or_says_what_is_wrong(tmp_path: Path) -> None:
    folder, state = a_state(tmp_path)
    controller = Controller(SimulatedFleet(), folder, state)
    async with listening(controller) as (_, stub):
        await stub.Scale(control_pb2.ScaleRequest(model="minilm", stage=1, replicas=3), metadata=BEARER)
        assert folder.read_state().models["minilm"].replicas == {1: (2, 3)}
        with pytest.raises(aio.AioRpcError) as caught:
            await stub.Scale(control_pb2.ScaleRequest(model="bert", stage=-1, replicas=3), metadata=BEARER)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        with pytest.raises(aio.AioRpcError) as caught:
            await stub.Scale(control_pb2.ScaleRequest(model="minilm", stage=-2, replicas=3), metadata=BEARER)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_stop_over_the_wire_answers_when_all_is_drained(tmp_path: Path) -> None:
    folder, state = a_state(tmp_path)
    fleet = SimulatedFleet()
    controller = Controller(fleet, folder, state)
    await settle(controller, lambda: is_ready(controller))
    async with listening(controller) as (server, stub):
        keeping = asyncio.create_task(controller.run_forever())
        await asyncio.wait_for(stub.Stop(control_pb2.StopRequest(), metadata=BEARER), 20)
        assert not fleet.replicas
        await asyncio.wait_for(server.until_stopped(answered_within_s=60), 30)
        keeping.cancel()


async def test_a_stop_that_nobody_waits_for_any_more_comes_to_its_end_too(tmp_path: Path) -> None:
    folder, state = a_state(tmp_path)
    drained: set[str] = set()
    fleet = SimulatedFleet(moves=lambda replica: replica.phase is not Phase.DRAINING or bool(drained))
    controller = Controller(fleet, folder, state)
    await settle(controller, lambda: is_ready(controller))
    async with listening(controller) as (server, stub):
        stopping = stub.Stop(control_pb2.StopRequest(), metadata=BEARER)
        async with asyncio.timeout(20):
            while not controller.state.stopping:
                await stub.GetStatus(control_pb2.GetStatusRequest(), metadata=BEARER)
        stopping.cancel()
        drained.add("all")
        await settle(controller, controller.emptied.is_set)
        await asyncio.wait_for(server.until_stopped(answered_within_s=0), 10)
    assert not fleet.replicas


async def test_a_port_that_is_taken_is_given_up_for_another(tmp_path: Path) -> None:
    folder, state = a_state(tmp_path)
    controller = Controller(SimulatedFleet(), folder, state)
    first, second = a_server(controller), a_server(controller)
    port = await first.start("127.0.0.1", 0)
    other = await second.start("127.0.0.1", port)
    assert other not in (0, port)
    await second.close(0)
    await first.close(0)
    third = a_server(controller)
    assert await third.start("127.0.0.1", port) == port
    await third.close(0)


async def test_each_version_has_replicas_and_a_route_of_its_own(tmp_path: Path) -> None:
    fleet = SimulatedFleet()
    folder, state = a_state(tmp_path, stages=2, replicas=1)
    served = state.models["minilm"]
    both = served.model_copy(update={"replicas": {1: (1, 1), 2: (1, 1)}, "signatures": {1: SIGNATURE, 2: SIGNATURE}})
    controller = Controller(fleet, folder, state.model_copy(update={"models": {"minilm": both}}))
    await settle(controller, lambda: is_ready(controller) and ready(fleet) == 4)
    assert controller.feed.table is not None
    routes = {model.version: [replica.id for replica in model.replicas] for model in controller.feed.table.models}
    assert {version: [name.rsplit("/", 2)[0] for name in names] for version, names in routes.items()} == {
        "1": ["minilm/1"],
        "2": ["minilm/2"],
    }
    fleet.kill(routes["1"][0])
    await controller.step()
    assert [model.ready for model in controller.feed.table.models] == [False, True]
