"""What `make chaos` counts and says, without a cluster."""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from rich.console import Console

from protos import inference_pb2 as pb
from tests.chaos import seen
from tests.chaos.__main__ import Case, Report, table
from tests.chaos.case import NotRun, Outcome
from tests.chaos.faults import Faulty
from tests.chaos.load import METHOD, Caller, expected, request
from worker.nouns import Tensor

OUTCOME = Outcome("kill_first", 5000, 0, 0, 7, 2, False, 812.4, 60.5, 3.25)


def answer(number: int) -> bytes:
    return pb.ModelInferResponse(id=str(number), raw_output_contents=[expected(number)]).SerializeToString()


@asynccontextmanager
async def server(given: list[int], enough: asyncio.Event) -> AsyncIterator[str]:
    """Answers the requests in turn with what belongs to the requests of the numbers `given`, and then rightly."""

    async def infer(message: bytes, _: object) -> bytes:
        asked = int(pb.ModelInferRequest.FromString(message).id)
        if asked > 5:
            enough.set()
        return answer(given[asked - 1] if asked <= len(given) else asked)

    one = grpc.aio.server()
    service, method = METHOD.strip("/").split("/")
    handlers: dict[str, Any] = {method: grpc.unary_unary_rpc_method_handler(infer)}
    one.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    port = one.add_insecure_port("127.0.0.1:0")
    await one.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await one.stop(None)


@pytest.mark.parametrize(
    ("given", "duplicated", "lost"),
    [([1, 2, 3], 0, 0), ([1, 1, 3], 1, 1), ([1, 2, 1], 1, 1), ([2], 1, 1), ([999_999], 0, 1)],
    ids=["each its own", "the first's again", "later", "too early", "of nobody"],
)
async def test_a_second_answer_to_a_request_is_counted_where_it_reaches_another_requests_call(
    given: list[int], duplicated: int, lost: int
) -> None:
    enough = asyncio.Event()
    async with server(given, enough) as address:
        caller = Caller(address, 50.0, 1, 10.0, retry=False)
        stop = asyncio.Event()
        running = asyncio.create_task(caller.run(stop))
        await asyncio.wait_for(enough.wait(), 30)
        stop.set()
        await running
    counts = caller.counts
    assert (counts.duplicated, counts.lost) == (duplicated, lost)
    assert counts.answered == counts.sent - lost


def tensors(data: bytes) -> tuple[Tensor]:
    return (Tensor("input", "FP32", (1, len(data) // 4), data),)


def test_what_workers_begin_or_compute_again_is_counted_by_the_number_that_a_request_carries(tmp_path: Path) -> None:
    assets = tmp_path / "models" / "chain" / "1" / "handler"
    assert seen.folder() is None
    Faulty(assets).before(tensors(request(5).raw_input_contents[0]))
    with seen.recorded(tmp_path / "seen"):
        where = seen.folder()
        assert where is not None
        first, second = Faulty(assets), Faulty(assets)
        first.before(tensors(request(1).raw_input_contents[0]))
        since = seen.sizes(where)
        for number in (1, 2, 3, 2**20 - 1):
            first.before(tensors(request(number).raw_input_contents[0]))
        for number in (2, 3, 2):
            second.before(tensors(request(number).raw_input_contents[0]))
        for number in (1, 3, 3, 2**20 - 1):
            second.after(tensors(expected(number)))
        assert {path.name for path in where.iterdir()} == {f"begun-{os.getpid()}", f"computed-{os.getpid()}"}
        assert seen.more_than_once(where, seen.BEGUN, since) == 2
        assert seen.more_than_once(where, seen.BEGUN, {}) == 3, "an earlier load's request 1 too"
        assert seen.more_than_once(where, seen.COMPUTED, since) == 1
    assert seen.more_than_once(None, seen.BEGUN, {}) == 0


def test_what_was_not_run_is_in_the_report_with_its_reason() -> None:
    report = Report([OUTCOME], [NotRun("slow_link", "there is no slow wire")])
    assert report.as_json()[0] == OUTCOME.as_json()
    cases = [Case(name, lambda one: one.is_whole) for name in ("kill_first", "partition", "slow_link", "full_disk")]
    report.leave_out(cases, "ip netns add: Operation not permitted")
    ran, *others = json.loads(json.dumps(report.as_json()))
    assert ran["not_run"] is None
    assert {"case", "sent", "lost", "duplicated", "worst_ms", "recovered_s"} < set(ran)
    assert all(set(one) == set(ran) for one in others)
    assert [{key: value for key, value in one.items() if value is not None} for one in others] == [
        {"case": "slow_link", "not_run": "there is no slow wire"},
        {"case": "partition", "not_run": "ip netns add: Operation not permitted"},
        {"case": "full_disk", "not_run": "ip netns add: Operation not permitted"},
    ]
    assert report.lines() == [
        "not run: slow_link: there is no slow wire",
        "not run: partition, full_disk: ip netns add: Operation not permitted",
    ]
    assert Report([OUTCOME]).lines() == []


def test_what_no_answer_tells_is_null() -> None:
    assert replace(OUTCOME, lost=5000, worst_ms=0.0).as_json()["worst_ms"] is None
    assert OUTCOME.as_json()["worst_ms"] == 812.4


@pytest.mark.parametrize(
    ("outcomes", "not_run", "status"),
    [
        ([OUTCOME], [], 0),
        ([OUTCOME], [NotRun("partition", "not permitted")], 3),
        ([], [NotRun("partition", "not permitted")], 3),
        ([replace(OUTCOME, lost=1)], [NotRun("partition", "not permitted")], 1),
        ([replace(OUTCOME, duplicated=1)], [], 1),
        ([OUTCOME], [NotRun("full_disk", "broken off", refused=False)], 1),
        ([], [], 1),
    ],
)
def test_the_exit_status_says_whether_all_passed_some_failed_or_some_were_refused(
    outcomes: list[Outcome], not_run: list[NotRun], status: int
) -> None:
    assert Report(outcomes, not_run).status == status


def test_the_table_says_what_was_computed_twice_and_whether_clients_retried() -> None:
    console = Console(width=140)
    retried = Outcome("kill_gateway", 5000, 0, 0, 0, 0, True, 10.0, 5.0, 3.0)
    with console.capture() as captured:
        console.print(table([OUTCOME, retried]))
    first, second = (line for line in captured.get().splitlines() if "5000" in line)
    assert "7/2" in first
    assert "clients retry" not in first
    assert "clients retry" in second
    assert retried.as_json()["clients_retry"] is True
    assert OUTCOME.as_json()["computed_twice"] == 2
