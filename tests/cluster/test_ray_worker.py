"""What the controller holds of one worker, whose Ray handle is played by a class of this file."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from ray.exceptions import ActorUnavailableError, RayTaskError

from cluster.health import HealthLimits
from cluster.ray_worker import RayWorker
from cluster.world import Phase, Stage
from worker.errors import Unavailable
from worker.model_yaml import ModelYaml
from worker.nouns import WorkerStats


class Method:
    def __init__(self, call: Callable[[], Awaitable[Any]]) -> None:
        self._call = call

    async def remote(self) -> Any:
        return await self._call()


class LostOnce:
    """The handle of a worker that never hears of its first `start`: Ray has just lost sight of its node."""

    def __init__(self) -> None:
        self.start, self.stats = Method(self._start), Method(self._stats)
        self._asked = 0

    async def _start(self) -> str:
        self._asked += 1
        if self._asked == 1:
            raise ActorUnavailableError("its node does not answer", None)
        return "host:1"

    async def _stats(self) -> WorkerStats:
        if self._asked < 2:
            raise RayTaskError("stats", "", Unavailable("it has not started"))  # type: ignore[no-untyped-call]
        return WorkerStats(address="host:1")


async def test_a_worker_that_did_not_hear_that_it_shall_start_is_asked_again() -> None:
    worker = RayWorker("chain/1/0/r1-1", Stage("chain", 1, 0), LostOnce(), ModelYaml(), epoch=1, adopted=False)
    async with asyncio.timeout(20):
        while not worker.address:
            worker.ping()
            await asyncio.wait(worker.questions)
    assert worker.seen(time.monotonic(), HealthLimits()).phase is Phase.READY
    await worker.close()
