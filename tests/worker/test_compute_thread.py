import asyncio
import threading
from collections.abc import Callable
from concurrent.futures.thread import BrokenThreadPool
from functools import partial
from typing import Any

import pytest

from worker.compute_thread import ComputeThread, Job


class Following:
    """What a thread goes on with: `jobs`, from the first to the last."""

    def __init__(self) -> None:
        self.works: list[Callable[[], Any]] = []
        self.asked_by: list[str] = []

    def __call__(self, loop: asyncio.AbstractEventLoop) -> Job[Any] | None:
        self.asked_by.append(threading.current_thread().name)
        return Job(self.works.pop(0), loop.create_future(), about="followed") if self.works else None


def test_jobs_are_computed_in_the_order_in_which_they_were_started() -> None:
    async def run() -> list[int]:
        done: list[int] = []
        thread = ComputeThread("compute", lambda: None, Following())
        jobs = [thread.start(partial(done.append, number)) for number in range(20)]
        await asyncio.gather(*(job.result for job in jobs))
        thread.stop()
        return done

    assert asyncio.run(run()) == list(range(20))


def test_the_thread_is_set_up_first_and_told_values_and_errors() -> None:
    async def run() -> None:
        order: list[str] = []

        def seven() -> int:
            order.append("job")
            return 7

        thread = ComputeThread("compute", lambda: order.append("set up"), Following())
        assert await thread.start(seven).result == 7
        with pytest.raises(ZeroDivisionError):
            await thread.start(lambda: 1 // 0).result
        thread.stop()
        assert order == ["set up", "job"]

    asyncio.run(run())


def test_it_goes_on_by_itself_while_the_loop_stands_still() -> None:
    async def run() -> None:
        following, second = Following(), threading.Event()
        following.works = [second.set]
        thread = ComputeThread("compute", lambda: None, following)
        job = thread.start(lambda: None)
        assert second.wait(10), "the loop stands still here"
        await job.result
        assert job.then is not None
        assert job.then.about == "followed"
        assert job.began <= job.then.began
        await job.then.result
        assert all(name.startswith("compute") for name in following.asked_by)
        thread.stop()

    asyncio.run(run())


def test_it_goes_on_after_a_job_that_failed() -> None:
    async def run() -> None:
        following = Following()
        following.works = [lambda: "good"]
        thread = ComputeThread("compute", lambda: None, following)
        job = thread.start(lambda: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            await job.result
        assert job.then is not None
        assert await job.then.result == "good"
        thread.stop()

    asyncio.run(run())


def test_it_does_not_ask_again_before_the_loop_knows_what_it_went_on_with() -> None:
    async def run() -> None:
        following = Following()
        following.works = [lambda: 2, lambda: 3]
        thread = ComputeThread("compute", lambda: None, following)
        first = thread.start(lambda: 1)
        await first.result
        assert first.then is not None
        assert await first.then.result == 2
        assert first.then.then is None, "the loop did not say that it knows of the second one"
        known = thread.start(lambda: 4)
        await known.result
        assert known.then is not None
        assert await known.then.result == 3
        thread.stop()

    asyncio.run(run())


def test_it_asks_after_what_it_is_known_to_have_gone_on_with() -> None:
    async def run() -> None:
        following, go = Following(), threading.Event()
        following.works = [lambda: go.wait(10), lambda: 3]
        thread = ComputeThread("compute", lambda: None, following)
        first = thread.start(lambda: 1)
        await first.result
        assert first.then is not None
        thread.went_on(first.then)
        go.set()
        assert await first.then.result
        assert first.then.then is not None
        assert await first.then.then.result == 3
        thread.stop()

    asyncio.run(run())


def test_it_goes_on_with_nothing_where_its_loop_is_closed() -> None:
    following, entered, go, followed = Following(), threading.Event(), threading.Event(), threading.Event()
    following.works = [followed.set]

    def first() -> None:
        entered.set()
        assert go.wait(10)

    async def run() -> Job[None]:
        job = ComputeThread("compute-closed", lambda: None, following).start(first)
        assert entered.wait(10)
        return job

    job = asyncio.run(run())
    threads = [thread for thread in threading.enumerate() if thread.name.startswith("compute-closed")]
    go.set()
    assert not followed.wait(0.2)
    assert len(threads) == 1
    assert not job.result.done()


def test_what_it_goes_on_with_has_begun_when_the_loop_hears_of_it() -> None:
    async def run() -> None:
        following = Following()
        thread = ComputeThread("compute", lambda: None, following)
        for _ in range(200):
            following.works = [lambda: None]
            job = thread.start(lambda: None)
            await job.result
            assert job.then is not None
            assert job.then.began >= job.began > 0
            await job.then.result
        thread.stop()

    asyncio.run(run())


def test_what_is_started_alone_is_followed_by_nothing() -> None:
    async def run() -> None:
        following = Following()
        following.works = [lambda: None]
        thread = ComputeThread("compute", lambda: None, following)
        job = thread.start(lambda: 1, alone=True)
        assert await job.result == 1
        assert job.then is None
        assert following.asked_by == []
        thread.stop()

    asyncio.run(run())


def test_one_that_cannot_tell_what_follows_does_not_stop_the_thread() -> None:
    def broken(_: asyncio.AbstractEventLoop) -> Job[Any] | None:
        raise ZeroDivisionError

    async def run() -> None:
        thread = ComputeThread("compute", lambda: None, broken)
        assert await thread.start(lambda: 1).result == 1
        assert await thread.start(lambda: 2).result == 2
        thread.stop()

    asyncio.run(run())


@pytest.mark.parametrize(("raised", "told"), [(SystemExit, SystemExit), (StopIteration, RuntimeError)])
def test_whatever_a_job_raises_is_told(raised: type[BaseException], told: type[BaseException]) -> None:
    async def run() -> None:
        def fails() -> None:
            raise raised

        thread = ComputeThread("compute", lambda: None, Following())
        job = thread.start(fails)
        await asyncio.wait((job.result,), timeout=10)
        assert isinstance(job.result.exception(), told)
        thread.stop()

    asyncio.run(run())


def test_a_thread_that_cannot_be_set_up_is_told() -> None:
    async def run() -> None:
        def fails() -> None:
            raise ZeroDivisionError

        with pytest.raises(BrokenThreadPool):
            await asyncio.wait_for(ComputeThread("compute", fails, Following()).start(lambda: None).result, 10)

    asyncio.run(run())
