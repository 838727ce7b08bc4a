import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from gateway.watch import Watch, WatchTimings
from protos import control_pb2 as pb
from tests.gateway.backend import TOKEN, model, table
from tests.gateway.controller import FakeController, controller
from worker.errors import InvalidRequest

FAST = WatchTimings(retry_min_s=0.01, retry_max_s=0.05)


class Applied:
    """Takes tables; `until` waits for the n-th."""

    def __init__(self) -> None:
        self.tables: list[tuple[pb.RouteTable, str]] = []
        self._changed = asyncio.Event()

    def __call__(self, given: pb.RouteTable, token: str) -> None:
        self.tables.append((given, token))
        self._changed.set()
        self._changed = asyncio.Event()
        if any(one.model == "bad" for one in given.models):
            raise InvalidRequest("a bad table")

    @property
    def generations(self) -> list[int]:
        return [given.generation for given, _ in self.tables]

    async def until(self, generation: int) -> None:
        async with asyncio.timeout(20):
            while generation not in self.generations:
                await self._changed.wait()


class Heard(logging.Handler):
    """Waits for a message in the gateway's log."""

    def __init__(self) -> None:
        super().__init__()
        self._messages: asyncio.Queue[str] = asyncio.Queue()
        logging.getLogger("gateway").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self._messages.put_nowait(record.getMessage())

    async def until(self, text: str) -> None:
        async with asyncio.timeout(20):
            while text not in await self._messages.get():
                pass
        logging.getLogger("gateway").removeHandler(self)


@asynccontextmanager
async def watching(control_file: Path, applied: Applied) -> AsyncIterator[None]:
    task: asyncio.Task[None] = asyncio.create_task(Watch(control_file, applied, FAST).run_forever())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_every_table_is_applied_with_the_token(tmp_path: Path) -> None:
    applied = Applied()
    async with controller() as one, watching(one.write_control_file(tmp_path), applied):
        one.push(table(model(), generation=1))
        await applied.until(1)
        one.push(table(model(), generation=2))
        await applied.until(2)
    assert {token for _, token in applied.tables} == {TOKEN}


async def test_a_controller_that_comes_back_elsewhere_is_found_again(tmp_path: Path) -> None:
    applied = Applied()
    async with controller() as one:
        path = one.write_control_file(tmp_path)
        async with watching(path, applied):
            one.push(table(generation=1))
            await applied.until(1)
            await one.stop()
            async with controller() as another:
                another.push(table(generation=2))
                another.write_control_file(tmp_path)
                await applied.until(2)


async def test_a_controller_that_is_not_there_yet_is_waited_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    applied, heard = Applied(), Heard()
    async with watching(tmp_path / "control.json", applied):
        await heard.until("cannot read the control file")
        async with controller() as one:
            one.push(table(generation=3))
            one.write_control_file(tmp_path)
            await applied.until(3)
    assert caplog.text.count("cannot read the control file") == 1


async def test_a_bad_table_is_logged_and_the_next_one_applied(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    applied = Applied()
    async with controller() as one, watching(one.write_control_file(tmp_path), applied):
        one.push(table(model("bad"), generation=4))
        await applied.until(4)
        one.push(table(generation=5))
        await applied.until(5)
    assert "route table 4 is not used, the one before it stays: a bad table" in caplog.text


async def test_a_token_that_the_controller_refuses_is_tried_again(tmp_path: Path) -> None:
    applied = Applied()
    async with controller() as one:
        stranger = FakeController("another token")
        stranger.address = one.address
        async with watching(stranger.write_control_file(tmp_path), applied):
            await one.until_refused(2)
            assert applied.tables == []
            one.push(table(generation=6))
            one.write_control_file(tmp_path)
            await applied.until(6)


async def test_the_controller_is_not_flooded_with_reports(tmp_path: Path) -> None:
    reports, now, began = 0, asyncio.Event(), asyncio.Event()

    def counted() -> pb.GatewayReport:
        nonlocal reports
        reports += 1
        began.set()
        now.set()  # the next one should not wait either
        return pb.GatewayReport()

    async with controller() as one:
        watch = Watch(one.write_control_file(tmp_path), Applied(), FAST, report=counted, report_now=now)
        watching = asyncio.create_task(watch.run_forever())
        async with asyncio.timeout(20):
            await began.wait()
        await asyncio.wait((watching,), timeout=1.0)
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
    assert 2 <= reports <= 22, "one in 50 ms"
