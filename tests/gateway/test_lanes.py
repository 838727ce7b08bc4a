"""Two pipelines of one model side by side, and a model without replicas, as a gateway serves them."""

import asyncio
import contextlib
from collections import Counter
from pathlib import Path
from time import monotonic

import pytest

from gateway.routes import Routes
from gateway.server import Gateway
from protos import control_pb2 as pb
from tests.gateway.backend import TOKEN, model, routes, table, worker
from tests.gateway.controller import controller
from worker.errors import InvalidRequest, Overloaded, Unavailable
from worker.nouns import Tensor, Work

X = Tensor("x", "FP32", (1, 4), bytes(16))


def lane(
    revision: int, weight: int = 0, *, version: str = "1", start_wait_s: float = 0.0, **fields: object
) -> pb.ModelRoute:
    route = model(version=version, **fields)  # type: ignore[arg-type]
    route.revision, route.weight, route.limits.start_wait_s = revision, weight, start_wait_s
    return route


def drawn(one: Routes, version: str = "") -> Counter[int]:
    return Counter(one.find("echo", version).route.revision for _ in range(4000))


async def test_two_revisions_share_the_requests_by_their_weights() -> None:
    async with routes() as one:
        one.apply(table(lane(1, 75), lane(2, 25)), TOKEN)
        share = drawn(one)
        assert 0.2 < share[2] / 4000 < 0.3
        assert one.describe("echo", "1").route.revision == 1
        assert [served.route.version for served in one.versions("echo")] == ["1"]


async def test_a_revision_that_only_warms_up_gets_nothing_and_one_that_is_not_ready_neither() -> None:
    async with routes() as one:
        one.apply(table(lane(1, 100), lane(2, 0)), TOKEN)
        assert drawn(one) == {1: 4000}
        one.apply(table(lane(1, 50), lane(2, 50, ready=False)), TOKEN)
        assert drawn(one) == {1: 4000}
        one.apply(table(lane(2, 100)), TOKEN)
        assert drawn(one) == {2: 4000}


async def test_a_new_version_gets_its_share_of_requests_that_name_no_version() -> None:
    async with routes() as one:
        one.apply(table(lane(1, 90, version="1"), lane(2, 10, version="2")), TOKEN)
        assert 0.05 < drawn(one)[2] / 4000 < 0.15
        assert drawn(one, "1") == {1: 4000}
        assert drawn(one, "2") == {2: 4000}


async def test_a_table_of_a_controller_that_was_superseded_is_not_used() -> None:
    async with routes() as one:
        newer, older = table(lane(1), generation=7), table(lane(2), generation=8)
        newer.epoch, older.epoch = 3, 2
        one.apply(newer, TOKEN)
        with pytest.raises(InvalidRequest, match="comes from controller 2, and 3 has taken over"):
            one.apply(older, TOKEN)
        assert one.find("echo", "").route.revision == 1
        one.apply(older, "the token of another run")


def of(controller: int, store: str = "") -> pb.RouteTable:
    """A table of that controller; its revision says which one is in force."""
    given = table(lane(controller))
    given.epoch, given.store = controller, store
    return given


async def test_controllers_of_another_store_count_anew_and_within_one_the_newest_holds() -> None:
    async with routes() as one:
        one.apply(of(9, "lost"), TOKEN)
        one.apply(of(2, "new"), TOKEN)
        for old in (of(1, "new"), of(8, "lost")):
            with pytest.raises(InvalidRequest, match="has taken over"):
                one.apply(old, TOKEN)
        assert one.find("echo", "").route.revision == 2
        one.apply(of(3, "new"), TOKEN)
        assert one.find("echo", "").route.revision == 3


async def test_a_controller_that_does_not_name_its_store_has_the_one_of_the_table_before() -> None:
    async with routes() as one:
        one.apply(of(7), TOKEN)
        with pytest.raises(InvalidRequest, match="comes from controller 6, and 7 has taken over"):
            one.apply(of(6), TOKEN)
        one.apply(of(8, "named"), TOKEN)
        with pytest.raises(InvalidRequest, match="comes from controller 7, and 8 has taken over"):
            one.apply(of(7), TOKEN)
        one.apply(of(9), TOKEN)
        assert one.find("echo", "").route.revision == 9


async def test_a_request_to_a_model_without_replicas_waits_for_the_first_one_and_is_told_of() -> None:
    async with worker() as address, routes() as one:
        one.apply(table(lane(1, 100, ready=False, reason="nobody asked for it", start_wait_s=30)), TOKEN)
        one.report_now.clear()
        served = one.find("echo", "")
        assert one.report_now.is_set()

        async def ask() -> bytes:
            with served.tally.request(1), served.admission.request(0.0, 20.0):
                answer = await served.link.call(Work((X,), monotonic() + 20), wait=True)
            return bytes(answer.tensors[0].data)

        asking = [asyncio.create_task(ask()) for _ in range(200)]
        await asyncio.sleep(0)
        (told,) = one.report("me").lanes
        assert (told.inflight, told.unplaced_rows, told.arrived_rows) == (64, 64, 200)
        refused = await asyncio.gather(*asking[64:], return_exceptions=True)
        assert all(isinstance(error, Overloaded) for error in refused), "the model's own bound holds while it sleeps"
        one.apply(table(lane(1, 100, replicas=[address], start_wait_s=30)), TOKEN)
        assert await asyncio.gather(*asking[:64]) == [bytes(16)] * 64
        (told,) = one.report("me").lanes
        assert (told.inflight, told.unplaced_rows, told.answered, told.refused) == (0, 0, 64, 136)
        assert sum(told.took.values()) == 64


async def test_what_is_ready_is_what_a_request_is_taken_for() -> None:
    async with routes() as one:
        for lanes, taken in (
            ((lane(1, 100, ready=False),), False),
            ((lane(1, 100, ready=False, start_wait_s=30),), True),
            ((lane(1, 100, ready=False), lane(2, 0, ready=False, start_wait_s=30)), False),
            ((lane(1, 100, version="1", ready=False), lane(2, 0, version="2", ready=False, start_wait_s=30)), True),
        ):
            one.apply(table(*lanes), TOKEN)
            assert (one.ready("echo"), one.ready()) == (taken, taken)
            with contextlib.nullcontext() if taken else pytest.raises(Unavailable):
                one.find("echo", "")


async def test_nothing_wakes_a_model_of_a_cluster_that_is_being_stopped() -> None:
    async with routes() as one:
        one.apply(table(lane(1, 100, ready=False, reason="it is being stopped", start_wait_s=30), stopping=True), TOKEN)
        with pytest.raises(Unavailable, match="it is being stopped"):
            one.find("echo", "")


async def test_the_controller_hears_what_was_asked_and_which_table_is_in_force(tmp_path: Path) -> None:
    heard: asyncio.Queue[pb.GatewayReport] = asyncio.Queue()
    async with controller() as one:
        one.on_report = heard.put_nowait
        one.push(table(model(), generation=9))
        async with Gateway("127.0.0.1:0", control_file=one.write_control_file(tmp_path)):
            async with asyncio.timeout(20):
                while (report := await heard.get()).generation != 9:
                    continue
            assert [(each.model, each.version) for each in report.lanes] == [("echo", "1")]
            assert report.gateway
