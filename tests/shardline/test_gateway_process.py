"""The gateway as `serve` starts it, without a cluster behind it: what it is told reaches its processes."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from shardline.gateway_process import GatewayBounds, GatewayPlace, GatewayProcess
from tests.gateway.backend import Serve, echo, model, table, worker
from tests.gateway.controller import controller
from tests.gateway.gate import Gate
from tests.gateway.stock import ROWS, InferenceServerException, connected, infer_input


@asynccontextmanager
async def started(
    folder: Path, bounds: GatewayBounds, serve: Serve = echo
) -> AsyncIterator[tuple[GatewayProcess, str]]:
    """The process, which has the table in force, and its host:port."""
    async with worker(serve) as address, controller() as one:
        one.push(table(model(replicas=[address])))
        place = GatewayPlace("127.0.0.1:0", 1, one.write_control_file(folder), folder, bounds)
        process = GatewayProcess(place)
        try:
            listens = await asyncio.to_thread(process.wait_until_ready, lambda: None)
            await one.until_in_force(1)
            yield process, listens
        finally:
            if process.exit_code is None:
                process.kill()


async def test_a_request_over_the_bound_is_refused_and_one_under_it_answered(tmp_path: Path) -> None:
    bounds = GatewayBounds(max_message_bytes=1000, notice_s=0)
    async with started(tmp_path, bounds) as (process, address), connected(address) as client:
        np.testing.assert_array_equal((await client.infer("echo", [infer_input()])).as_numpy("x"), ROWS)
        with pytest.raises(InferenceServerException, match="larger than max: 1000") as caught:
            await client.infer("echo", [infer_input(np.zeros((100, 4), np.float32))])
        assert caught.value.status() == "StatusCode.RESOURCE_EXHAUSTED"
        assert await asyncio.to_thread(process.drain) == 0


async def test_a_drain_waits_for_the_calls_at_work_as_long_as_it_was_told(tmp_path: Path) -> None:
    gate = Gate()
    async with (
        started(tmp_path, GatewayBounds(notice_s=0, finish_s=0.5), gate.serve) as (process, address),
        connected(address) as client,
    ):
        held = asyncio.create_task(client.infer("echo", [infer_input()]))
        await gate.until(entered=1)
        began = time.monotonic()
        ended = asyncio.create_task(asyncio.to_thread(process.drain))
        with pytest.raises(InferenceServerException) as caught:
            await held
        assert caught.value.status() == "StatusCode.UNAVAILABLE"
        await ended
        assert 0.5 <= time.monotonic() - began < 25  # the default lets them have 30
