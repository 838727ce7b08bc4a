import asyncio
import contextlib
import gc
import threading
import time
from collections.abc import AsyncIterator, Sequence

import pytest
import torch

from tests.worker.replicas import TOKEN, replica
from worker.batcher import Batching
from worker.collate import to_tensors
from worker.compute_thread import Job
from worker.errors import DeadlineExceeded, Internal, InvalidRequest, Overloaded
from worker.link import STAGE_LINK, Link, LinkLimits
from worker.nouns import Answer, Axis, Signature, Tensor, TensorSpec, Work
from worker.stream_server import StreamServer
from worker.warm_up import warm_up_shapes
from worker.worker import Worker

X = TensorSpec("x", "FP32", ("batch", "length"), pad=0.0)
Y = TensorSpec("y", "FP32", ("batch", "length"))


class Doubles:
    """A shard that doubles, fails on 13, and can be held."""

    signature = Signature((X,), (Y,))
    runtime = "eager"

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.entered = threading.Semaphore(0)
        self.go = threading.Event()
        self.go.set()

    def run(self, inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        (x,) = inputs
        self.batches.append(list(x.shape))
        self.entered.release()
        if not self.go.wait(10):
            raise TimeoutError("never released")
        if (x == 13).any():
            raise ValueError("thirteen")
        return (2 * x,)

    async def has_entered(self) -> None:
        assert await asyncio.to_thread(self.entered.acquire, timeout=10)


class Renames(Doubles):
    """A second stage: takes `y`."""

    signature = Signature(
        (TensorSpec("y", "FP32", ("batch", "length")),), (TensorSpec("z", "FP32", ("batch", "length")),)
    )


def work(*values: float, seconds: float = 10.0, name: str = "x", priority: int = 0) -> Work:
    tensors = to_tensors([torch.tensor([values], dtype=torch.float32)], [TensorSpec(name, "", ())])
    return Work(tensors, time.monotonic() + seconds, priority)


def values(answer: Answer) -> list[float]:
    (tensor,) = answer.tensors
    found: list[float] = torch.frombuffer(bytearray(tensor.data), dtype=torch.float32).tolist()
    return found


@contextlib.asynccontextmanager
async def running(worker: Worker) -> AsyncIterator[Worker]:
    task = asyncio.create_task(worker.run_forever())
    try:
        yield worker
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def worker_of(
    shard: Doubles, batching: Batching | None = None, max_queue_rows: int = 256, sheds: bool = True
) -> Worker:
    return Worker(shard, outputs=shard.signature.outputs, batching=batching, max_queue_rows=max_queue_rows, sheds=sheds)


async def queued(worker: Worker, *works: Work) -> list[asyncio.Task[Answer]]:
    tasks = [asyncio.create_task(worker.serve(one)) for one in works]
    await asyncio.sleep(0)
    return tasks


async def test_a_request_is_computed_and_timed() -> None:
    async with running(worker_of(Doubles())) as worker:
        answer = await worker.serve(work(1, 2, 3))
    assert values(answer) == [2, 4, 6]
    assert answer.timing.batch_rows == 1
    assert answer.timing.compute_ns > 0
    assert worker.counters.computed_rows == 1


async def test_what_waits_together_is_computed_together_and_answers_are_trimmed() -> None:
    shard = Doubles()
    async with running(worker_of(shard, Batching(max_padding=0.9))) as worker:
        shard.go.clear()
        first = await queued(worker, work(0))
        await shard.has_entered()
        rest = await queued(worker, work(1), work(1, 2), work(1, 2, 3))
        shard.go.set()
        assert [values(await task) for task in first + rest] == [[0], [2], [2, 4], [2, 4, 6]]
    assert shard.batches == [[1, 1], [3, 3]]


async def test_the_next_batch_begins_before_the_last_one_is_answered() -> None:
    shard = Doubles()
    async with running(worker_of(shard, Batching(max_padding=0.0))) as worker:
        shard.go.clear()
        first, second = await queued(worker, work(1), work(1, 2))
        await shard.has_entered()
        waiting_at_answer: list[int] = []
        first.add_done_callback(lambda _: waiting_at_answer.append(worker.batcher.rows))
        shard.go.set()
        await asyncio.gather(first, second)
    assert shard.batches == [[1, 1], [1, 2]]
    assert waiting_at_answer == [0], "the second batch was still in the queue when the first was answered"


async def test_the_next_batch_begins_although_the_loop_stands_still() -> None:
    shard = Doubles()
    async with running(worker_of(shard, Batching(max_padding=0.0))) as worker:
        shard.go.clear()
        first, second, third = await queued(worker, work(1), work(1, 2), work(1, 2, 3))
        await shard.has_entered()
        shard.go.set()
        assert shard.entered.acquire(timeout=10), "the loop stands still here"
        assert [values(await one) for one in (first, second, third)] == [[2], [2, 4], [2, 4, 6]]
    assert shard.batches == [[1, 1], [1, 2], [1, 3]]
    assert worker.counters.computed_batches == 3


class CountsJobs(Doubles):
    """Of the compute thread, in this process, whenever it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: list[int] = []

    def run(self, inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        time.sleep(0.002)
        self.alive.append(sum(type(one) is Job for one in gc.get_objects()))
        return super().run(inputs)


async def test_a_thread_that_goes_on_and_on_keeps_nothing_of_what_it_computed() -> None:
    shard = CountsJobs()
    async with running(worker_of(shard, Batching(max_padding=0.0))) as worker:
        await asyncio.gather(*await queued(worker, *(work(*[0.0] * length) for length in range(1, 39))))
    assert len(shard.alive) == 38
    assert max(shard.alive) <= 6


@pytest.mark.parametrize("cancelled", [True, False])
async def test_what_nobody_waits_for_any_more_is_not_gone_on_with(cancelled: bool) -> None:
    shard = Doubles()
    async with running(worker_of(shard, Batching(max_padding=0.0))) as worker:
        shard.go.clear()
        first, gone, last = await queued(
            worker, work(1), work(1, 2, seconds=10.0 if cancelled else 0.001), work(1, 2, 3, 4)
        )
        await shard.has_entered()
        if cancelled:
            gone.cancel()
        await asyncio.sleep(0.01)
        shard.go.set()
        assert [values(await one) for one in (first, last)] == [[2], [2, 4, 6, 8]]
        with pytest.raises(asyncio.CancelledError if cancelled else DeadlineExceeded):
            await gone
    assert shard.batches == [[1, 1], [1, 4]]
    assert worker.batcher.dropped_cancelled + worker.batcher.dropped_expired == 1


async def test_a_batch_that_fails_is_tried_row_by_row_after_what_the_thread_has_gone_on_with() -> None:
    shard = Doubles()
    async with running(worker_of(shard, Batching(max_padding=0.0))) as worker:
        shard.go.clear()
        first = await queued(worker, work(0, 0))
        await shard.has_entered()
        bad, good, other = await queued(worker, work(13), work(1), work(1, 2, 3))
        shard.go.set()
        assert shard.entered.acquire(timeout=10), "the loop stands still here: the thread goes on"
        assert values(await good) == [2]
        assert values(await other) == [2, 4, 6]
        with pytest.raises(Internal, match="thirteen"):
            await bad
        await asyncio.gather(*first)
        assert values(await worker.serve(work(5))) == [10]
    assert shard.batches[:2] == [[1, 2], [2, 1]]
    assert sorted(shard.batches[2:]) == [[1, 1], [1, 1], [1, 1], [1, 3]], "each once"
    assert worker.batcher.rows == 0


async def test_one_bad_row_fails_alone() -> None:
    shard = Doubles()
    async with running(worker_of(shard)) as worker:
        shard.go.clear()
        first = await queued(worker, work(0))
        await shard.has_entered()
        rest = await queued(worker, work(1), work(13), work(2))
        shard.go.set()
        answers = await asyncio.gather(*first, *rest, return_exceptions=True)
    assert isinstance(answers[2], Internal)
    assert "thirteen" in str(answers[2])
    assert [values(answer) for answer in answers if isinstance(answer, Answer)] == [[0], [2], [4]]
    assert worker.counters.failed == 1


async def test_work_that_nobody_waits_for_is_not_computed() -> None:
    shard = Doubles()
    async with running(worker_of(shard)) as worker:
        shard.go.clear()
        first = await queued(worker, work(0))
        await shard.has_entered()
        (cancelled, expired) = await queued(worker, work(1), work(2, seconds=0.001))
        cancelled.cancel()
        await asyncio.sleep(0.002)
        shard.go.set()
        await asyncio.gather(*first)
        with pytest.raises(DeadlineExceeded):
            await expired
        await worker.serve(work(5))
    assert shard.batches == [[1, 1], [1, 1]]
    assert (worker.batcher.dropped_cancelled, worker.batcher.dropped_expired) == (1, 1)


async def test_the_time_for_which_there_was_no_work_is_not_taken_for_idleness_although_a_dead_request_waited() -> None:
    shard = Doubles()
    async with running(worker_of(shard)) as worker:
        shard.go.clear()
        first = await queued(worker, work(0))
        await shard.has_entered()
        (cancelled,) = await queued(worker, work(1))
        cancelled.cancel()
        await asyncio.sleep(0)
        shard.go.set()
        await asyncio.gather(*first)
        await asyncio.sleep(1.5)
        await worker.serve(work(2))
        assert worker.load().forecast.pace_s < 0.5 / 16, "it would be over a second for 16 rows"


@pytest.mark.parametrize("sheds", [True, False])
async def test_work_that_would_be_late_is_given_up_before_it_is_computed_unless_all_would_be(sheds: bool) -> None:
    shard = Doubles()
    async with running(worker_of(shard, Batching(max_rows=1), sheds=sheds)) as worker:
        shard.go.clear()
        slow = await queued(worker, work(0))
        await shard.has_entered()
        threading.Timer(1.0, shard.go.set).start()
        await asyncio.gather(*slow)
        assert worker.load().forecast.least_s > 0.9
        shard.go.clear()
        first = await queued(worker, work(1))
        await shard.has_entered()
        tight, patient = await queued(worker, work(2, seconds=1.0), work(3))
        shard.go.set()
        await asyncio.gather(*first, patient)
        if sheds:
            with pytest.raises(DeadlineExceeded, match="would come after the deadline"):
                await tight
        else:
            assert values(await tight) == [4]
    assert worker.batcher.dropped_expired == sheds


async def test_a_full_queue_refuses() -> None:
    shard = Doubles()
    async with running(worker_of(shard, max_queue_rows=1)) as worker:
        shard.go.clear()
        first = await queued(worker, work(0))
        await shard.has_entered()
        second = await queued(worker, work(1))
        with pytest.raises(Overloaded):
            await worker.serve(work(2))
        shard.go.set()
        await asyncio.gather(*first, *second)


async def test_the_load_counts_what_waits_and_what_is_computed() -> None:
    shard = Doubles()
    async with running(worker_of(shard)) as worker:
        shard.go.clear()
        tasks = await queued(worker, work(0))
        await shard.has_entered()
        tasks += await queued(worker, work(1), work(2))
        assert worker.load().queued_rows == 3
        shard.go.set()
        await asyncio.gather(*tasks)
        assert worker.load().queued_rows == 0
        assert worker.load().seconds_per_row > 0


async def test_a_wrong_tensor_is_refused_before_the_queue() -> None:
    async with running(worker_of(Doubles())) as worker:
        with pytest.raises(InvalidRequest, match="input 'x' is missing"):
            await worker.serve(work(1, name="other"))


@contextlib.asynccontextmanager
async def two_stages(
    first: Doubles, second: Renames, limits: LinkLimits | None = None, arrivals: asyncio.Queue[Work] | None = None
) -> AsyncIterator[Worker]:
    last = Worker(second, outputs=second.signature.outputs)

    async def serve(given: Work) -> Answer:
        if arrivals is not None:
            arrivals.put_nowait(given)
        return await last.serve(given)

    server = StreamServer(TOKEN, serve, last.load)
    async with running(last):
        link = Link(TOKEN, limits or LinkLimits(max_inflight=4))
        link.route({"last": await server.start()})
        try:
            async with running(Worker(first, outputs=second.signature.outputs, link=link)) as worker:
                yield worker
        finally:
            await link.close()
            await server.stop()


async def test_two_stages_compute_one_after_the_other() -> None:
    async with two_stages(Doubles(), Renames()) as worker:
        answer = await worker.serve(work(1, 2))
    assert answer.tensors[0].name == "z"
    assert values(answer) == [4, 8]


async def test_a_batch_travels_whole_to_the_next_stage() -> None:
    first, second = Doubles(), Renames()
    async with two_stages(first, second) as worker:
        first.go.clear()
        tasks = await queued(worker, work(0))
        await first.has_entered()
        tasks += await queued(worker, work(1), work(2), work(3))
        first.go.set()
        assert [values(await task) for task in tasks] == [[0], [4], [8], [12]]
    assert first.batches == [[1, 1], [3, 1]]
    assert second.batches in ([[1, 1], [3, 1]], [[4, 1]]), "both may have waited there"


async def test_a_row_that_only_the_next_stage_fails_on_fails_alone() -> None:
    first, second = Doubles(), Renames()
    async with two_stages(first, second) as worker:
        first.go.clear()
        tasks = await queued(worker, work(0))
        await first.has_entered()
        tasks += await queued(worker, work(1), work(6.5), work(3), work(4))
        first.go.set()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(answers[2], Internal)
    assert "thirteen" in str(answers[2])
    assert [values(answer) for answer in answers if isinstance(answer, Answer)] == [[0], [4], [12], [16]]
    assert worker.counters.failed == 1


async def test_a_later_stage_takes_all_that_the_stages_before_it_may_have_in_flight() -> None:
    second = Renames()
    last = Worker(second, outputs=second.signature.outputs, max_queue_rows=None)
    async with running(last), replica(last.serve, last.load) as (_, address):
        links = [Link(TOKEN, STAGE_LINK) for _ in range(3)]
        for link in links:
            link.route({"last": address})
        second.go.clear()
        batch = torch.ones(256, 1)
        given = Work(to_tensors([batch], [TensorSpec("y", "", ())]), time.monotonic() + 30)
        tasks = [
            asyncio.create_task(link.call(given, wait=True)) for link in links for _ in range(STAGE_LINK.max_inflight)
        ]
        await second.has_entered()
        second.go.set()
        answers = await asyncio.gather(*tasks)
        assert all(answer.tensors[0].shape == (256, 1) for answer in answers)
        for link in links:
            await link.close()


async def test_when_everyone_of_a_batch_has_gone_the_next_stage_does_not_compute_it() -> None:
    first, second = Doubles(), Renames()
    arrivals: asyncio.Queue[Work] = asyncio.Queue()
    async with two_stages(first, second, arrivals=arrivals) as worker:
        second.go.clear()
        (held,) = await queued(worker, work(0))
        await second.has_entered()
        (gone,) = await queued(worker, work(1))
        for _ in range(2):
            await arrivals.get()
        gone.cancel()
        (kept,) = await queued(worker, work(3))
        await arrivals.get()  # on the same stream, behind the cancel
        second.go.set()
        await asyncio.gather(held, kept)
    assert len(second.batches) == 2


async def test_what_everyone_gave_up_during_its_computation_is_not_sent_on() -> None:
    first, second = Doubles(), Renames()
    async with two_stages(first, second) as worker:
        first.go.clear()
        (gone,) = await queued(worker, work(1))
        await first.has_entered()
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        first.go.set()
        await worker.serve(work(3))
    assert len(second.batches) == 1


async def test_a_slow_next_stage_holds_back_the_first_instead_of_filling_memory() -> None:
    first, second = Doubles(), Renames()
    async with two_stages(first, second, LinkLimits(max_inflight=1)) as worker:
        second.go.clear()
        tasks = await queued(worker, work(0))
        await second.has_entered()
        for number in range(20, 40):
            tasks += await queued(worker, work(number))
        second.go.set()
        await asyncio.gather(*tasks)
    assert len(first.batches) <= 4


async def test_warm_up_computes_each_shape_and_learns_the_time_of_a_row() -> None:
    shard = Doubles()
    worker = worker_of(shard)
    await worker.warm_up([{"batch": 1, "length": 2}, {"batch": 4, "length": 8}])
    assert shard.batches[:2] == [[1, 2], [4, 8]]
    assert worker.load().seconds_per_row > 0


class TakesLonger(Doubles):
    """20 ms for each run, and 1 ms for each cell."""

    def run(self, inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        time.sleep(0.02 + 0.001 * inputs[0].numel())
        return super().run(inputs)


async def test_warm_up_learns_how_much_padding_costs_less_than_a_batch_more() -> None:
    worker = worker_of(TakesLonger())
    await worker.warm_up([{"batch": 1, "length": 10}, {"batch": 1, "length": 40}])
    spare = worker.batcher.batching.spare_cells
    assert spare is not None
    assert 15 < spare < 26


async def test_warm_up_learns_nothing_of_padding_from_one_run_each() -> None:
    class Slow(TakesLonger):
        def run(self, inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
            time.sleep(0.5)
            return super().run(inputs)

    shard = Slow()
    worker = worker_of(shard)
    await worker.warm_up([{"batch": 1, "length": 10}, {"batch": 1, "length": 40}])
    assert len(shard.batches) == 2
    assert worker.batcher.batching.spare_cells is None


async def test_warm_up_learns_nothing_of_padding_where_several_axes_are_padded() -> None:
    shard = TakesLonger()
    axes = ("query", "document")
    shard.signature = Signature(
        tuple(TensorSpec(name, "FP32", ("batch", name), pad=0.0) for name in axes),
        (TensorSpec("y", "FP32", ("batch", "query")),),
    )
    shard.run = lambda inputs: (inputs[0],)  # type: ignore[method-assign]
    worker = worker_of(shard)
    await worker.warm_up([{"batch": 1, "query": 4, "document": 4}, {"batch": 1, "query": 80, "document": 80}])
    assert worker.batcher.batching.spare_cells is None


async def test_warm_up_knows_nothing_of_padding_where_length_costs_nothing() -> None:
    worker = worker_of(Doubles())
    await worker.warm_up([{"batch": 1, "length": 8}, {"batch": 1, "length": 9}])
    assert worker.batcher.batching.spare_cells is None


def test_warm_up_shapes_stay_inside_the_axes_bounds() -> None:
    signature = Signature((X,), (Y,), (Axis("batch", 1, 8), Axis("length", 2, 40)))
    for shape in warm_up_shapes(signature, 16):
        assert 1 <= shape["batch"] <= 8
        assert 2 <= shape["length"] <= 40


async def test_warm_up_knows_sizes_that_are_expressions_of_axes() -> None:
    shard = Doubles()
    shard.signature = Signature((TensorSpec("x", "FP32", ("batch", "4*length")),), (Y,), (Axis("length", 2, 40),))
    worker = worker_of(shard)
    shapes = warm_up_shapes(shard.signature, 16)
    await worker.warm_up(shapes)
    assert shard.batches[: len(shapes)] == [[shape["batch"], 4 * shape["length"]] for shape in shapes]


async def test_a_handler_translates_on_the_way_in_and_out() -> None:
    class Text:
        signature = Signature((TensorSpec("text", "BYTES", ("batch",)),), (TensorSpec("answer", "FP32", ("batch", 1)),))

        def before(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
            length = int.from_bytes(bytes(tensors[0].data[:4]), "little")
            return to_tensors([torch.tensor([[float(length)]])], [TensorSpec("x", "", ())])

        def after(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
            return (Tensor("answer", "FP32", tensors[0].shape, tensors[0].data),)

    shard = Doubles()
    async with running(Worker(shard, outputs=shard.signature.outputs, handler=Text())) as worker:
        answer = await worker.serve(Work((Tensor("text", "BYTES", (1,), b"\x03\0\0\0abc"),), time.monotonic() + 5))
    assert answer.tensors[0].name == "answer"
    assert values(answer) == [6]
