"""Three times as much as a two-stage pipeline can do, through a real gateway.

The shards sleep, so that what they can do does not depend on the machine; but it must not be busy with other things.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence

import pytest
import torch

from benchmarks.open_load import Fates, load
from gateway.server import Gateway
from protos import inference_pb2 as pb
from tests.gateway.backend import TOKEN, model, table
from worker.batcher import Batching
from worker.link import Link, LinkLimits
from worker.nouns import Signature, TensorSpec
from worker.stream_server import StreamServer
from worker.worker import Worker

pytestmark = pytest.mark.slow

SPECS = (TensorSpec("x", "FP32", ("batch", 4)),)
ROWS = 8
DEADLINE_S = 0.5


class Sleeps:
    """Takes its time for each batch and for each row of it."""

    signature = Signature(SPECS, SPECS)
    runtime = "eager"

    def __init__(self, batch_s: float, row_s: float) -> None:
        self._batch_s = batch_s
        self._row_s = row_s

    def run(self, inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        time.sleep(self._batch_s + self._row_s * inputs[0].shape[0])
        return (inputs[0],)


@contextlib.asynccontextmanager
async def serving(shard: Sleeps, link: Link | None, *, sheds: bool) -> AsyncIterator[str]:
    """A worker; its address."""
    batching = Batching(max_rows=ROWS)
    worker = Worker(shard, outputs=SPECS, link=link, batching=batching, max_queue_rows=4096, sheds=sheds)
    await worker.warm_up([{"batch": 1}, {"batch": 4}])
    running = asyncio.create_task(worker.run_forever())
    server = StreamServer(TOKEN, worker.serve, worker.load)
    try:
        yield await server.start()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await server.stop()


async def overloaded(first: Sleeps, second: Sleeps, capacity: float, *, plain_queue: bool) -> tuple[Fates, Fates]:
    """What becomes of three times the capacity, and of a quarter of it right after."""
    tensor = pb.ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=[1, 4])
    request = pb.ModelInferRequest(model_name="echo", inputs=[tensor], raw_input_contents=[bytes(16)])
    link = Link(TOKEN, LinkLimits(max_inflight=4))
    try:
        async with (
            serving(second, None, sheds=not plain_queue) as last,
            serving(first, link, sheds=not plain_queue) as address,
            Gateway("127.0.0.1:0") as gateway,
        ):
            link.route({"last": last})
            route = model(replicas=[address], max_inflight=4096, max_inflight_per_replica=1024)
            route.limits.plain_queue = plain_queue
            gateway.apply(table(route), TOKEN)
            target = f"127.0.0.1:{gateway.port}"
            overload, after = await load(
                target, [request.SerializeToString()], [(3 * capacity, 3.0), (capacity / 4, 1.5)], DEADLINE_S
            )
            return overload, after
    finally:
        await link.close()


async def test_where_a_later_stage_is_the_slow_one_what_can_be_done_is_done_and_the_rest_refused_at_once() -> None:
    quick, slow = Sleeps(0.002, 0.002), Sleeps(0.004, 0.008)
    capacity = ROWS / (0.004 + 0.008 * ROWS)
    overload, after = await overloaded(quick, slow, capacity, plain_queue=False)
    assert overload.goodput > 0.7 * capacity, overload
    assert overload.refused > 0.4 * overload.sent, overload
    assert overload.refused_p50_ms < 10, overload
    assert sum(after.in_time_by_bucket[-3:]) > 2.8, after


async def test_a_plain_queue_does_hardly_anything_in_time() -> None:
    slow, quick = Sleeps(0.004, 0.008), Sleeps(0.002, 0.002)
    capacity = ROWS / (0.004 + 0.008 * ROWS)
    overload, _ = await overloaded(slow, quick, capacity, plain_queue=True)
    assert overload.goodput < 0.5 * capacity, overload
    assert overload.refused == 0
