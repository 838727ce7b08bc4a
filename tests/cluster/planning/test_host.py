"""Simulated machines."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.planning.clock import Clock
from cluster.planning.host import Host, Scheduler, Thread

FINE = Scheduler(slice_s=0.001, switch_s=0.0, refill_s=0.0)


def finished(cores: float, tasks: list[tuple[float, int]], crowded: float = 1.0) -> list[float]:
    """When each of (seconds, width), all begun at 0, ends."""
    clock = Clock()
    host = Host(clock, cores, crowded=crowded, scheduler=FINE)
    ends = [0.0] * len(tasks)

    def end(place: int) -> None:
        ends[place] = clock.now

    for place, (seconds, width) in enumerate(tasks):
        host.compute(seconds, width, lambda place=place: end(place))  # type: ignore[misc]
    clock.run(float("inf"))
    return ends


def test_tasks_on_cores_of_their_own_take_their_time() -> None:
    assert finished(2, [(1.0, 1), (3.0, 1)]) == pytest.approx([1.0, 3.0])


def test_more_tasks_than_cores_share_them() -> None:
    assert finished(1, [(1.0, 1), (2.0, 1)]) == pytest.approx([2.0, 3.0], abs=0.002)


def test_crowded_cores_are_slower_until_one_is_alone() -> None:
    assert finished(2, [(1.0, 1), (2.0, 1)], crowded=2.0) == pytest.approx([2.0, 3.0])


def test_what_is_urgent_has_nearly_all_of_its_core() -> None:
    clock = Clock()
    host = Host(clock, 1, scheduler=FINE)
    ends: list[tuple[str, float]] = []
    host.compute(3.0, 1, lambda: ends.append(("worker", clock.now)))
    clock.at(1.0, lambda: host.compute(0.5, 1, lambda: ends.append(("gateway", clock.now)), niceness=-10))
    clock.run(float("inf"))
    assert [name for name, _ in ends] == ["gateway", "worker"]
    assert [when for _, when in ends] == pytest.approx([1.5, 3.5], abs=0.05)


@pytest.mark.parametrize(("switch_s", "refill_s"), [(0.01, 0.0), (0.0, 0.01), (0.004, 0.006)])
def test_a_turn_after_another_s_costs_the_switch_and_what_the_caches_lose(switch_s: float, refill_s: float) -> None:
    clock = Clock()
    host = Host(clock, 1, scheduler=Scheduler(slice_s=0.1, switch_s=switch_s, refill_s=refill_s))
    ends = []
    for _ in range(2):
        host.compute(0.25, 1, lambda: ends.append(clock.now))
    clock.run(float("inf"))
    # Turns of 0.1, 0.1, 0.1, 0.1, then each its rest; the first of all costs nothing.
    assert max(ends) == pytest.approx(0.5 + 5 * 0.01, abs=0.011)


def test_a_short_task_of_a_thread_that_slept_does_not_wait_for_a_long_one() -> None:
    clock = Clock()
    host = Host(clock, 1, scheduler=Scheduler(slice_s=0.5, switch_s=0.0, refill_s=0.0))
    host.compute(3.0, 1, lambda: None)
    loop, ends = Thread(clock, host), []
    clock.at(1.2, lambda: loop.do(0.01, lambda: ends.append(clock.now)))
    clock.run(float("inf"))
    assert ends == pytest.approx([1.21])


def test_two_threads_that_wake_each_other_do_not_keep_a_third_from_its_core() -> None:
    clock = Clock()
    host = Host(clock, 1, scheduler=FINE)
    one, other, third = Thread(clock, host), Thread(clock, host), Thread(clock, host)
    ends: list[float] = []

    def ping() -> None:
        if clock.now < 5:
            other.do(0.0005, pong)

    def pong() -> None:
        one.do(0.0005, ping)

    ping()
    third.do(0.1, lambda: ends.append(clock.now))
    clock.run(float("inf"))
    assert ends == [pytest.approx(0.2, abs=0.12)]


def test_threads_of_a_width_keep_what_they_have_in_the_caches() -> None:
    clock = Clock()
    wide = Thread(clock, Host(clock, 2, scheduler=Scheduler()), width=2)
    ends: list[float] = []
    for _ in range(10):
        wide.do(0.01, lambda: ends.append(clock.now))
    clock.run(float("inf"))
    assert ends[-1] == pytest.approx(0.1)


def test_a_slice_in_which_nothing_could_be_done_is_refused() -> None:
    with pytest.raises(ValueError, match="slice_s"):
        Scheduler(slice_s=0.0002)


def test_a_core_without_work_takes_what_waits_on_another() -> None:
    # Three tasks on two cores: whoever ends first makes room for the one that waits.
    assert max(finished(2, [(1.0, 1), (1.0, 1), (1.0, 1)])) == pytest.approx(1.5, abs=0.01)
    assert max(finished(2, [(0.5, 1), (2.0, 1), (2.0, 1), (0.5, 1)])) == pytest.approx(2.5, abs=0.01)


@settings(deadline=None)
@given(
    st.integers(1, 4),
    st.lists(st.tuples(st.floats(0.01, 5), st.sampled_from([1, 2])), min_size=1, max_size=8),
)
def test_work_is_conserved(cores: int, tasks: list[tuple[float, int]]) -> None:
    ends = finished(cores, tasks)
    work = sum(seconds * width for seconds, width in tasks)
    assert max(ends) >= work / cores * (1 - 1e-9) - 1e-6
    for (seconds, _), end in zip(tasks, ends, strict=True):
        assert end >= seconds * (1 - 1e-9) - 1e-6
    assert max(ends) <= sum(seconds * max(1.0, width / cores) for seconds, width in tasks) + 1e-6


def test_who_is_woken_by_a_thread_does_not_wait_for_it_where_another_core_is_free() -> None:
    clock = Clock()
    host = Host(clock, 2, scheduler=FINE)
    one, other, ends = Thread(clock, host), Thread(clock, host), []
    other.do(0.1, lambda: None)  # it has a core now, where `one` then runs
    clock.at(1.0, lambda: one.do(0.1, lambda: other.do(1.0, lambda: ends.append(clock.now))))
    clock.at(1.0, lambda: one.do(5.0, lambda: None))
    clock.run(float("inf"))
    assert ends == pytest.approx([2.1])


def test_what_goes_on_at_once_comes_before_what_waits() -> None:
    clock = Clock()
    thread = Thread(clock, None)
    order: list[str] = []
    thread.do(1.0, lambda: thread.do(1.0, lambda: order.append("goes on"), at_once=True))
    thread.do(1.0, lambda: order.append("waited"))
    clock.run(float("inf"))
    assert order == ["goes on", "waited"]


def test_a_thread_does_one_thing_after_the_other_and_wakes_once() -> None:
    clock = Clock()
    thread = Thread(clock, None, wake=0.5)
    ends: list[float] = []
    for _ in range(3):
        thread.do(1.0, lambda: ends.append(clock.now))
    clock.run(float("inf"))
    assert ends == pytest.approx([1.5, 2.5, 3.5])
