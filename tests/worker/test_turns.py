import asyncio
import time

import pytest

from worker.turns import Turns


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def waiter(turns: Turns, name: str, came: list[str], priority: int = 0, seconds: float = 10.0) -> asyncio.Task[None]:
    number = turns.number()

    async def wait() -> None:
        await turns.wait(priority, number, time.monotonic() + seconds)
        came.append(name)

    return asyncio.create_task(wait())


async def test_the_lowest_priority_comes_first_and_the_oldest_within_one() -> None:
    turns, came = Turns(), list[str]()
    tasks = [waiter(turns, name, came, priority) for name, priority in (("b1", 1), ("a1", 0), ("b2", 1), ("a2", 0))]
    await settle()
    for places in (1, 1, 2):
        turns.wake(places)
        await settle()
    assert came == ["a1", "a2", "b1", "b2"]
    await asyncio.gather(*tasks)
    assert not turns


async def test_who_was_woken_has_a_place_until_it_comes() -> None:
    turns, came = Turns(), list[str]()
    tasks = [waiter(turns, str(number), came) for number in range(3)]
    await settle()
    turns.wake(1)
    turns.wake(1)
    assert len(turns) == 2, "there is one place, and one is on its way to it"
    assert turns
    turns.wake_all()
    await asyncio.gather(*tasks)
    assert came == ["0", "1", "2"]


async def test_who_gives_up_takes_no_turn() -> None:
    turns, came = Turns(), list[str]()
    tasks = [waiter(turns, str(number), came) for number in range(100)]
    await settle()
    for task in tasks[:99]:
        task.cancel()
    await settle()
    assert len(turns) == 1
    turns.wake(1)
    await tasks[99]
    assert came == ["99"]
    assert not turns


async def test_many_that_leave_in_one_moment_take_nobody_with_them() -> None:
    turns, came = Turns(), list[str]()
    tasks = [waiter(turns, str(number), came) for number in range(25)]
    await settle()
    for task in tasks[10:]:
        task.cancel()
    await settle()
    for left in range(10, 0, -1):
        assert len(turns) == left
        assert turns
        turns.wake(1)
        await settle()
    assert came == [str(number) for number in range(10)]
    assert not turns


async def test_waiting_has_an_end() -> None:
    turns, came = Turns(), list[str]()
    await asyncio.wait_for(waiter(turns, "late", came, seconds=0.01), 5)
    assert not turns


@pytest.mark.parametrize("woken_first", [True, False])
async def test_one_that_is_cancelled_in_the_moment_it_is_woken_leaves_no_trace(*, woken_first: bool) -> None:
    turns, came = Turns(), list[str]()
    task = waiter(turns, "gone", came)
    await settle()
    if woken_first:
        turns.wake(1)
    task.cancel()
    await settle()
    turns.wake(1)
    await settle()
    assert task.cancelled()
    assert not turns
