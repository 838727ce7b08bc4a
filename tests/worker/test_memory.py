import asyncio
import gc
import random
import time
from collections.abc import Sequence

import torch

from worker.collate import to_tensors
from worker.errors import ShardlineError
from worker.link import Link, LinkLimits
from worker.nouns import Signature, TensorSpec, Work
from worker.stream_server import StreamServer
from worker.worker import Worker, resident_bytes

X = TensorSpec("x", "FP32", ("batch", "length"), pad=0.0)
LIMIT = 32 << 20


class Increments:
    signature = Signature((X,), (TensorSpec("y", "FP32", ("batch", "length")),))
    runtime = "eager"

    def run(self, inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        if inputs[0].shape[1] == 77:
            raise ValueError("a length that fails")
        return (inputs[0] + 1,)


async def test_memory_stays_flat_over_fifty_thousand_mixed_requests() -> None:
    """All lengths, failures, deadlines that pass, callers that cancel, and now and then two megabytes."""
    worker = Worker(Increments(), outputs=Increments.signature.outputs, max_queue_rows=128)
    computing = asyncio.create_task(worker.run_forever())
    server = StreamServer("t", worker.serve, worker.load)
    link = Link("t", LinkLimits(max_inflight=256))
    link.route({"only": await server.start()})
    chance = random.Random(0)
    answered = 0

    async def one() -> None:
        nonlocal answered
        length = 500_000 if chance.random() < 0.001 else chance.randrange(1, 200)
        (tensor,) = to_tensors([torch.zeros(1, length)], [X])
        seconds = 0.002 if chance.random() < 0.02 else 10.0
        call = asyncio.create_task(link.call(Work((tensor,), time.monotonic() + seconds)))
        if chance.random() < 0.05:
            await asyncio.sleep(0)
            call.cancel()
        try:
            answer = await call
        except (ShardlineError, asyncio.CancelledError):
            return
        assert answer.tensors[0].shape == (1, length)
        answered += 1

    async def caller(requests: int) -> None:
        for _ in range(requests):
            await one()

    async def round_of(requests: int) -> int:
        await asyncio.gather(*(caller(requests // 100) for _ in range(100)))
        gc.collect()
        return resident_bytes()

    try:
        await round_of(10_000)
        before = await round_of(10_000)
        after = await round_of(30_000)
    finally:
        await link.close()
        computing.cancel()
        await asyncio.gather(computing, return_exceptions=True)
        await server.stop()
    assert answered > 25_000
    assert server.owed == 0
    assert after - before < LIMIT, f"grew from {before >> 20} to {after >> 20} MiB"
