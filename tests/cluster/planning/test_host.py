"""Simulated machines."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.planning.host import Clock, Host, Thread


def finished(cores: float, tasks: list[tuple[float, float]], crowded: float = 1.0) -> list[float]:
    """When each of (seconds, width), all begun at 0, ends."""
    clock = Clock()
    host = Host(clock, cores, crowded=crowded)
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
    assert finished(1, [(1.0, 1), (2.0, 1)]) == pytest.approx([2.0, 3.0])


def test_crowded_cores_are_slower_until_one_is_alone() -> None:
    assert finished(2, [(1.0, 1), (2.0, 1)], crowded=2.0) == pytest.approx([2.0, 3.0])


def test_what_is_urgent_has_its_core_first() -> None:
    clock = Clock()
    host = Host(clock, 1)
    ends: list[tuple[str, float]] = []
    host.compute(3.0, 1, lambda: ends.append(("worker", clock.now)))
    clock.at(1.0, lambda: host.compute(0.5, 1, lambda: ends.append(("gateway", clock.now)), urgent=True))
    clock.run(float("inf"))
    assert [name for name, _ in ends] == ["gateway", "worker"]
    assert [when for _, when in ends] == pytest.approx([1.5, 3.5])


@settings(deadline=None)
@given(
    st.integers(1, 4),
    st.lists(st.tuples(st.floats(0.01, 5), st.sampled_from([1, 2])), min_size=1, max_size=8),
)
def test_work_is_conserved(cores: int, tasks: list[tuple[float, float]]) -> None:
    ends = finished(cores, tasks)
    work = sum(seconds * width for seconds, width in tasks)
    assert max(ends) >= work / cores * (1 - 1e-9) - 1e-6
    for (seconds, _), end in zip(tasks, ends, strict=True):
        assert end >= seconds * (1 - 1e-9) - 1e-6
    assert max(ends) <= sum(seconds * max(1.0, width / cores) for seconds, width in tasks) + 1e-6


def test_a_thread_does_one_thing_after_the_other_and_wakes_once() -> None:
    clock = Clock()
    thread = Thread(clock, None, wake=0.5)
    ends: list[float] = []
    for _ in range(3):
        thread.do(1.0, lambda: ends.append(clock.now))
    clock.run(float("inf"))
    assert ends == pytest.approx([1.5, 2.5, 3.5])
