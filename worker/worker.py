"""Computes what arrives: queue → batch → shard → next stage or answer. One shard, one compute thread.

`run_forever` is the only loop; `step` is one turn of it. Nothing here knows of Ray or gRPC.
"""

import asyncio
import logging
import math
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol, TypeAlias

import psutil
import torch

from worker.batcher import Batcher, Batching, Item, cells_of, spare_cells
from worker.collate import Collator, to_tensors
from worker.compute_thread import ComputeThread, Job
from worker.errors import DeadlineExceeded, DeviceFailed, Internal, ShardlineError
from worker.handler import Handler
from worker.link import Link
from worker.nouns import BATCH, Answer, Forecast, Load, Signature, Tensor, TensorSpec, Timing, Work
from worker.outlook import Held, Outlook
from worker.sparing_log import SparingLog
from worker.warm_up import warm_up_inputs

logger = logging.getLogger(__name__)

_SMOOTHING = 0.2
"""Weight of the newest batch in the running mean of a row's service time."""


class Computes(Protocol):
    """What a worker needs of a shard."""

    signature: Signature
    runtime: str

    def run(self, inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]: ...


_WARM_UP_TURNS = 5
_WARM_UP_S = 1.0
"""A large model is warmed up once, a small one until its times are known."""
_CHEAP_S = 100e-6
"""A hop to the compute thread and back costs about this, seconds: what takes less is computed in place."""


@dataclass(slots=True)
class Counters:
    computed_rows: int = 0
    computed_batches: int = 0
    computing_s: float = 0.0
    failed: int = 0


_Computed: TypeAlias = tuple[tuple[Tensor, ...], float]
"""A batch's outputs and the seconds that the shard took."""


@dataclass(frozen=True, slots=True)
class _Begun:
    """due: when it is expected to be answered, the later stages' part included."""

    items: list[Item]
    rows: int
    nbytes: int
    due: float
    job: Job[_Computed]


@dataclass(frozen=True, slots=True)
class _Ended:
    items: list[Item]
    answer: Answer
    due: float


class Worker:
    """Hosts one shard. `link` leads to the next stage; None: this is the last one.

    `outputs` are the whole program's, since that is what comes back from the last stage. Belongs to the event loop it
    runs on.
    """

    def __init__(
        self,
        shard: Computes,
        *,
        outputs: Sequence[TensorSpec],
        link: Link | None = None,
        handler: Handler | None = None,
        batching: Batching | None = None,
        max_queue_rows: int | None = 256,
        threads: int = 1,
        sheds: bool = True,
    ) -> None:
        """sheds: gives up what waits here and would be late, where something else would not be."""
        self._shard = shard
        self._link = link
        self._handler = handler
        self._collator = Collator(shard.signature.inputs, outputs)
        batching = batching or Batching()
        self._max_rows = batching.max_rows
        self._sheds = sheds
        self.batcher = Batcher(batching, max_queue_rows, self._least_s if sheds else lambda _: 0.0)
        self.counters = Counters()
        self._seconds_per_row = 0.0
        self._computing_rows = 0
        self._computing_since = 0.0
        self._free_since = math.inf
        self._outlook = Outlook(batching.max_rows)
        self._failures = SparingLog(logger, "the shard failed on a request")
        self._cheap_bytes = 0
        self._compute = ComputeThread("compute", partial(torch.set_num_threads, threads), self._following)
        self._text = ThreadPoolExecutor(1, "handler")
        self._finished: list[_Ended] = []
        self._ahead: _Begun | None = None
        self._may_go_on = False
        self._late_s = 0.0
        self._forwards: set[asyncio.Task[None]] = set()

    def load(self) -> Load:
        now, waiting, computing = time.monotonic(), self.batcher.rows, self._computing_rows
        held = Held(waiting, computing, now - self._computing_since)
        forecast = self._outlook.tell(held, self._later(waiting + 1), self._later(1).least_s, now)
        return Load(waiting + computing, self._seconds_per_row, forecast=forecast)

    def _least_s(self, rows: int) -> float:
        return self._outlook.careful_s(rows, self._later(rows), time.monotonic())

    def _later(self, rows: int) -> Forecast:
        """What the next stage tells of the first batch of so many rows."""
        return self._link.forecast(min(self._max_rows, rows)) if self._link is not None else Forecast()

    async def warm_up(self, shapes: Sequence[dict[str, int]]) -> None:
        """Computes zeros at each of `shapes` (axis name to length), so that no request pays for first-time work.

        The first two of them, a short one and a long one, then tell what padding costs.
        """
        batches = [warm_up_inputs(self._shard.signature, lengths) for lengths in shapes]
        best = [math.inf] * len(shapes)
        until = time.monotonic() + _WARM_UP_S
        for turn in range(_WARM_UP_TURNS):
            if turn and time.monotonic() > until:
                break
            for number, (lengths, inputs) in enumerate(zip(shapes, batches, strict=True)):
                _, seconds = await self._compute.start(partial(self._timed_run, inputs), alone=True).result
                self._learn_cheap(sum(tensor.nbytes for tensor in inputs), seconds)
                self._seconds_per_row = seconds / lengths.get(BATCH, 1)
                if turn or number:  # the first one pays for what is done once
                    best[number] = min(best[number], seconds)
                    self._outlook.computed(lengths.get(BATCH, 1), seconds)
        self._learn_padding(batches[:2], best[:2])

    def _learn_padding(self, batches: Sequence[Sequence[torch.Tensor]], seconds: Sequence[float]) -> None:
        """From two batches, where it is but one axis that is padded, and both were computed more than once."""
        specs = self._shard.signature.inputs
        measured = [self._collator.measure(Work(to_tensors(inputs, specs), math.inf)) for inputs in batches]
        if len(measured) == 2 and all(len(one.sizes) == 1 for one in measured) and max(seconds) < math.inf:
            short, long = ((one.rows * cells_of(one.sizes), took) for one, took in zip(measured, seconds, strict=True))
            self.batcher.batching = replace(self.batcher.batching, spare_cells=spare_cells(short, long))

    async def serve(self, work: Work) -> Answer:
        """Queues `work` and returns its answer. Cancelling the caller takes it out of the queue."""
        if self._handler is None:
            return await self._queue(work)
        loop = asyncio.get_running_loop()
        tensors = await loop.run_in_executor(self._text, self._handler.before, work.tensors)
        answer = await self._queue(Work(tensors, work.deadline, work.priority, work.traceparent))
        return Answer(await loop.run_in_executor(self._text, self._handler.after, answer.tensors), answer.timing)

    async def run_forever(self) -> None:
        """Raises torch.AcceleratorError where the device has failed: this process can compute no more."""
        try:
            while True:
                await self.step()
        finally:
            self._compute.stop()
            for task in self._forwards:
                task.cancel()
            await asyncio.gather(*self._forwards, return_exceptions=True)
            await asyncio.sleep(0)  # who was answered just now may still need the handler
            self._text.shutdown(wait=False)

    async def step(self) -> None:
        """Begins the next batch, unless the compute thread has begun it by itself, sends the one before it on its way
        meanwhile, and waits for the batch to end.
        """
        begun, self._ahead = self._ahead, None
        if begun is None:
            begun = self._begin_ready() if self._finished else self._begin(await self._next())
        finished, self._finished = self._finished, []
        for group in finished:
            self._send_on(group)
        if begun is not None:
            self._may_go_on = self._has_room
            self._finished = await self._ended(begun)

    async def _next(self) -> list[Item]:
        if self._link is not None:
            await self._link.room()
        return await self.batcher.next()

    def _begin_ready(self) -> _Begun | None:
        items = self.batcher.ready() if self._has_room else []
        return self._begin(items) if items else None

    async def _queue(self, work: Work) -> Answer:
        measured = self._collator.measure(work)
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self.batcher.put(Item(work, measured.rows, measured.nbytes, measured.shape_key, measured.sizes, future))
        return await future

    @property
    def _has_room(self) -> bool:
        return self._link is None or self._link.has_room

    def _following(self, loop: asyncio.AbstractEventLoop) -> Job[_Computed] | None:
        """What the compute thread goes on with: it asks for that itself, so nothing is changed here."""
        items = self.batcher.ahead(self._late_s) if self._may_go_on else []
        if not items or sum(item.nbytes for item in items) <= self._cheap_bytes:
            return None
        return Job(partial(self._compute_works, [item.work for item in items]), loop.create_future(), about=items)

    def _go_on(self, job: Job[_Computed]) -> None:
        """Learns what the compute thread has begun by itself after `job`."""
        if job.then is None:
            self._compute.went_on(None)
            return
        then, job.then = job.then, None  # else each job would keep all that come after it
        items, self._may_go_on = then.about, False
        self.batcher.remove(items)
        self.batcher.drop_dead()
        rows, nbytes, due = self._booked(items, then.began)
        self._ahead = _Begun(items, rows, nbytes, due, then)
        self._compute.went_on(then)

    def _begin(self, items: list[Item], *, alone: bool = False) -> _Begun:
        """Hands the batch to the compute thread; computes it here where that takes less than the hop there.

        alone: the thread does not go on with another one by itself.
        """
        now, work = time.monotonic(), partial(self._compute_works, [item.work for item in items])
        rows, nbytes, due = self._booked(items, now)
        if nbytes > self._cheap_bytes:
            return _Begun(items, rows, nbytes, due, self._compute.start(work, alone=alone))
        job = Job(work, asyncio.get_running_loop().create_future(), began=now)
        try:
            job.succeeded(work())
        except Exception as error:  # noqa: BLE001 - as from the thread: told where it is awaited
            job.failed(error)
        return _Begun(items, rows, nbytes, due, job)

    def _booked(self, items: list[Item], now: float) -> tuple[int, int, float]:
        """Rows, bytes, and when they are due, of what begins `now`."""
        rows, nbytes = sum(item.rows for item in items), sum(item.nbytes for item in items)
        due = now + self._outlook.least_s(rows, self._later(rows))
        # The batch that follows may be a full one; what is said to be late for that, the loop looks at again.
        self._late_s = self._least_s(self._max_rows) if self._sheds else 0.0
        # What waited when the last batch ended may have been given up since: these items' own wait counts.
        waited_since = max(self._free_since, min(item.arrived for item in items))
        self._outlook.was_idle(max(0.0, now - waited_since), now)
        self._computing_rows, self._computing_since = rows, now
        return rows, nbytes, due

    async def _ended(self, begun: _Begun) -> list[_Ended]:
        """The batch's answer; where the batch fails, each item by itself, so that one bad item fails alone."""
        items, rows = begun.items, begun.rows
        try:
            tensors, seconds = await begun.job.result
        except Exception as error:
            self._computing_rows, self._free_since, self._may_go_on = 0, math.inf, False
            if isinstance(error, torch.AcceleratorError) and await self._device_has_failed():
                # Another replica's device might fail on it in the same way.
                self._fail(items, DeviceFailed(f"the device failed while it computed this batch: {error}"[:500]))
                raise
            self._go_on(begun.job)
            await self._failed(items, error)
            return []
        self._learn_cheap(begun.nbytes, seconds)
        self.counters.computed_rows += rows
        self.counters.computed_batches += 1
        self.counters.computing_s += seconds
        self._outlook.computed(rows, seconds)
        self._free_since = begun.job.began + seconds if self.batcher.ripe else math.inf
        self._computing_rows = 0
        self._seconds_per_row += _SMOOTHING * (seconds / max(1, rows) - self._seconds_per_row)
        self._go_on(begun.job)
        return [_Ended(items, Answer(tensors, Timing(0, int(seconds * 1e9), rows)), begun.due)]

    async def _failed(self, items: list[Item], error: Exception) -> None:
        """Each item of a batch that failed is computed by itself, after what the thread has gone on with."""
        if len(items) == 1:
            self._fail(items, error)
            return
        if self._ahead is not None:
            await asyncio.wait((self._ahead.job.result,))
        for item in items:
            for group in await self._ended(self._begin([item], alone=True)):
                self._send_on(group)

    async def _device_has_failed(self) -> bool:
        return await self._compute.start(_computes_nothing_more, alone=True).result

    def _compute_works(self, works: Sequence[Work]) -> _Computed:
        values, seconds = self._timed_run(self._collator.stack(works))
        return to_tensors(values, self._shard.signature.outputs), seconds

    def _timed_run(self, inputs: Sequence[torch.Tensor]) -> tuple[tuple[torch.Tensor, ...], float]:
        started = time.perf_counter()
        values = self._shard.run(inputs)
        return values, time.perf_counter() - started

    def _learn_cheap(self, nbytes: int, seconds: float) -> None:
        """Inputs of up to `_cheap_bytes` were computed in no time; one that was not lowers the mark below itself."""
        if seconds < _CHEAP_S:
            self._cheap_bytes = max(self._cheap_bytes, nbytes)
        else:
            self._cheap_bytes = min(self._cheap_bytes, nbytes - 1)

    def _send_on(self, ended: _Ended) -> None:
        items = ended.items
        if self._link is None:
            self._answered(ended.due)
            self._deliver(items, ended.answer)
            return
        if all(item.future.done() for item in items):
            self._learn_at_least(ended.due)
            return
        task = asyncio.create_task(self._forward(self._link, ended))
        self._forwards.add(task)
        task.add_done_callback(self._forwarded)
        waiting = len(items)

        def one_is_done(_: object) -> None:
            nonlocal waiting
            waiting -= 1
            if not waiting:
                task.cancel()  # nobody waits for any of it: the next stage is told

        for item in items:
            item.future.add_done_callback(one_is_done)

    def _forwarded(self, task: asyncio.Task[None]) -> None:
        self._forwards.discard(task)
        self._may_go_on = self._ahead is None and self._has_room

    async def _forward(self, link: Link, ended: _Ended) -> None:
        items, mine = ended.items, ended.answer
        work = Work(
            mine.tensors,
            max(item.work.deadline for item in items),
            min(item.work.priority for item in items),
            items[0].work.traceparent,
        )
        try:
            answer = await link.call(work, wait=True)
        except asyncio.CancelledError:
            self._learn_at_least(ended.due)
            raise
        except DeadlineExceeded as error:
            self._answered(ended.due, work.deadline)
            self._fail(items, error)
            return
        except Internal as error:
            self._try_each_alone(items, error)
            return
        except ShardlineError as error:
            self._fail(items, error)
            return
        self._answered(ended.due)
        compute_ns = mine.timing.compute_ns + answer.timing.compute_ns
        timing = Timing(answer.timing.queue_ns, compute_ns, mine.timing.batch_rows)
        self._deliver(items, Answer(answer.tensors, timing))

    def _learn_at_least(self, due: float) -> None:
        """From what nobody waits for any more: its answer would have come later still."""
        if time.monotonic() > due:
            self._answered(due)

    def _answered(self, due: float, at_the_earliest: float = 0.0) -> None:
        """A batch that was `due` is answered now, or would have been at some later time."""
        now = time.monotonic()
        self._outlook.answered(max(now, at_the_earliest) - due, now)

    def _try_each_alone(self, items: list[Item], error: Internal) -> None:
        """A later stage failed on the batch: each goes through the stages again by itself, so that one bad item fails
        alone.
        """
        if len(items) == 1:
            self._fail(items, error)
            return
        for item in items:
            if not item.future.done():
                item.shape_key = object()
                self.batcher.put(item, admitted=True)

    def _deliver(self, items: list[Item], answer: Answer) -> None:
        now = time.monotonic()
        try:
            parts = self._collator.split(answer.tensors, [item.work for item in items])
        except Exception as error:  # noqa: BLE001 - the model gave something else than its manifest says
            self._fail(items, error)
            return
        for item, tensors in zip(items, parts, strict=True):
            if item.future.done():
                continue
            queued = int((now - item.arrived) * 1e9) - answer.timing.compute_ns
            timing = Timing(max(0, queued), answer.timing.compute_ns, answer.timing.batch_rows)
            item.future.set_result(Answer(tensors, timing))

    def _fail(self, items: list[Item], error: Exception) -> None:
        if not isinstance(error, DeadlineExceeded):
            self.counters.failed += len(items)
        if not isinstance(error, ShardlineError):
            self._failures.failed(error)
            error = Internal(f"the model failed on this request: {type(error).__name__}: {error}"[:500])
        for item in items:
            if not item.future.done():
                item.future.set_exception(error)


def _computes_nothing_more() -> bool:
    """Whether the device fails at anything; what it refuses of one batch is raised in the same way."""
    device = torch.accelerator.current_accelerator()
    if device is None:
        return True
    try:
        torch.ones(1, device=device).add_(1).item()
    except RuntimeError:
        return True
    return False


def resident_bytes() -> int:
    return int(psutil.Process(os.getpid()).memory_info().rss)
