import asyncio
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.batcher import Batcher, Batching, Item, form_batch, spare_cells
from worker.errors import DeadlineExceeded, Overloaded
from worker.nouns import Answer, Tensor, Work


class NoFuture(asyncio.Future[Answer]):
    """For pure decisions, which look at no future."""

    def __init__(self) -> None:
        super().__init__(loop=_LOOP)


_LOOP = asyncio.new_event_loop()
_LOOP.close()


def item(
    rows: int = 1,
    length: int = 8,
    *,
    key: object = None,
    priority: int = 0,
    seconds: float = 10.0,
    future: asyncio.Future[Answer] | None = None,
) -> Item:
    work = Work((Tensor("x", "UINT8", (rows, length), bytes(rows * length)),), time.monotonic() + seconds, priority)
    return Item(work, rows, rows * length, key, (length,), future or NoFuture())


def waiting(rows: int = 1, length: int = 8, *, priority: int = 0, seconds: float = 10.0) -> Item:
    future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
    return item(rows, length, priority=priority, seconds=seconds, future=future)


def padding(batch: list[Item]) -> float:
    longest = max(one.sizes[0] for one in batch)
    rows = sum(one.rows for one in batch)
    return 1 - sum(one.rows * one.sizes[0] for one in batch) / (rows * longest)


items = st.lists(st.tuples(st.integers(1, 20), st.integers(1, 128), st.integers(0, 1)), min_size=1, max_size=30)


@given(items, st.integers(1, 16), st.floats(0, 1), st.integers(1, 4096))
def test_a_batch_starts_with_the_oldest_and_keeps_every_bound(
    queue: list[tuple[int, int, int]], max_rows: int, max_padding: float, max_bytes: int
) -> None:
    waiting_items = [item(rows, length, key=key) for rows, length, key in queue]
    batch = form_batch(waiting_items, Batching(max_rows, 0.0, max_bytes, max_padding))
    assert batch[0] is waiting_items[0]
    assert len(set(map(id, batch))) == len(batch)
    assert {one.shape_key for one in batch} == {batch[0].shape_key}
    if len(batch) > 1:
        assert sum(one.rows for one in batch) <= max_rows
        assert padding(batch) <= max_padding + 1e-9
        assert sum(one.rows for one in batch) * max(one.sizes[0] for one in batch) <= max_bytes


def test_equal_lengths_fill_the_batch() -> None:
    assert len(form_batch([item() for _ in range(20)], Batching(max_rows=16))) == 16


def test_near_lengths_are_preferred_to_older_ones() -> None:
    short, far, near = item(length=10), item(length=100), item(length=11)
    assert form_batch([short, far, near], Batching(max_rows=2)) == [short, near]


def test_a_length_that_would_pad_too_much_waits() -> None:
    short, long = item(length=8), item(length=128)
    assert form_batch([short, long], Batching(max_padding=0.25)) == [short]


@given(items, st.floats(0, 60))
def test_a_batch_has_no_more_padding_than_costs_as_much_as_another_batch(
    queue: list[tuple[int, int, int]], spare: float
) -> None:
    batch = form_batch([item(rows, length, key=key) for rows, length, key in queue], Batching(16, spare_cells=spare))
    cells = sum(one.rows for one in batch) * max(one.sizes[0] for one in batch)
    assert padding(batch) * cells <= spare + 1e-6


def test_what_padding_costs_decides_who_shares_a_batch() -> None:
    short, near, long = item(length=8), item(length=20), item(length=128)
    assert form_batch([short, near, long], Batching(spare_cells=12.0)) == [short, near]
    assert form_batch([short, near, long], Batching(spare_cells=11.0)) == [short]


def test_padding_is_a_tenth_at_most_where_its_cost_is_not_known() -> None:
    assert len(form_batch([item(length=90), item(length=100)], Batching())) == 2
    assert len(form_batch([item(length=70), item(length=100)], Batching())) == 1


def test_a_share_that_the_operator_gave_counts_whatever_padding_costs() -> None:
    short, long = item(length=8), item(length=128)
    assert form_batch([short, long], Batching(max_padding=0.0, spare_cells=1e9)) == [short]
    assert form_batch([short, long], Batching(max_padding=1.0, spare_cells=0.0)) == [short, long]


def test_spare_cells_are_what_a_batch_costs_beside_its_cells() -> None:
    found = spare_cells((16, 0.0018), (64, 0.0066))  # 0.1 ms a cell, 0.2 ms a run, and 0.5 ms around it
    assert found == pytest.approx(7.0)


@pytest.mark.parametrize(
    ("short", "long"), [((16, 0.001), (64, 0.0011)), ((16, 0.001), (16, 0.002)), ((16, 0.002), (64, 0.001))]
)
def test_spare_cells_are_not_known_where_length_costs_next_to_nothing(
    short: tuple[int, float], long: tuple[int, float]
) -> None:
    assert spare_cells(short, long) is None


def test_an_item_over_the_bound_goes_alone() -> None:
    large, small = item(rows=50), item()
    assert form_batch([large, small], Batching(max_rows=16)) == [large]


async def test_the_queue_gives_higher_priority_first_and_older_first_within_it() -> None:
    batcher = Batcher(Batching(max_rows=1), 100)
    second, third, first = waiting(priority=1), waiting(priority=1), waiting(priority=0)
    for one in (second, third, first):
        batcher.put(one)
    assert [await batcher.next() for _ in range(3)] == [[first], [second], [third]]


async def test_a_full_queue_refuses_and_counts() -> None:
    batcher = Batcher(Batching(), max_queue_rows=4)
    batcher.put(waiting(rows=3))
    with pytest.raises(Overloaded, match="3 of 4 rows"):
        batcher.put(waiting(rows=2))
    assert (batcher.rows, batcher.refused) == (3, 1)


async def test_cancelled_items_make_room_and_are_never_given_out() -> None:
    batcher = Batcher(Batching(), max_queue_rows=1)
    gone, kept = waiting(), waiting()
    batcher.put(gone)
    gone.future.cancel()
    batcher.put(kept)
    assert await batcher.next() == [kept]
    assert (batcher.dropped_cancelled, batcher.rows) == (1, 0)


async def test_expired_items_are_told_and_never_given_out() -> None:
    batcher = Batcher(Batching(), 100)
    late, kept = waiting(seconds=-1), waiting()
    batcher.put(late)
    batcher.put(kept)
    assert await batcher.next() == [kept]
    assert batcher.dropped_expired == 1
    with pytest.raises(DeadlineExceeded):
        await late.future


async def test_what_would_be_late_is_told_and_never_given_out_while_something_waits_that_would_not() -> None:
    asked: list[int] = []

    def least_s(rows: int) -> float:
        asked.append(rows)
        return 0.5 * rows

    batcher = Batcher(Batching(max_rows=1), 100, least_s)
    hopeless, kept, other = waiting(seconds=0.4), waiting(seconds=30), waiting(seconds=0.4)
    for one in (hopeless, kept, other):
        batcher.put(one)
    assert await batcher.next() == [kept]
    assert (asked, batcher.rows, batcher.dropped_expired) == ([1], 0, 2), "the batch that would be taken has one row"
    for one in (hopeless, other):
        with pytest.raises(DeadlineExceeded, match="would come after the deadline"):
            await one.future
    late, later = waiting(seconds=0.3), waiting(seconds=0.4)
    batcher.put(late)
    batcher.put(later)
    assert await batcher.next() == [late], "all would be late: the guess may be wrong"
    assert await batcher.next() == [later]


async def test_without_a_wait_a_lone_item_is_given_at_once() -> None:
    batcher = Batcher(Batching(max_wait_s=0.0), 100)
    one = waiting()
    batcher.put(one)
    assert await asyncio.wait_for(batcher.next(), 1) == [one]


async def test_a_batch_that_fills_ends_the_wait() -> None:
    batcher = Batcher(Batching(max_rows=2, max_wait_s=60.0), 100)
    first, second = waiting(), waiting()
    batcher.put(first)
    taking = asyncio.create_task(batcher.next())
    await asyncio.sleep(0)
    assert not taking.done()
    batcher.put(second)
    assert await asyncio.wait_for(taking, 1) == [first, second]


async def test_a_batch_that_does_not_fill_is_given_after_the_wait() -> None:
    batcher = Batcher(Batching(max_rows=2, max_wait_s=0.05), 100)
    one = waiting()
    batcher.put(one)
    assert await asyncio.wait_for(batcher.next(), 5) == [one]
    assert time.monotonic() - one.arrived >= 0.05
