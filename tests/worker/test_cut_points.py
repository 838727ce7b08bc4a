import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.cut_points import BALANCE_TOLERANCE, choose_points
from worker.errors import InvalidRequest

FREE = (0, 0)


def crossing(count: int, **special: tuple[int, int] | None) -> list[tuple[int, int] | None]:
    """A cut is free everywhere but at the ends, and where `at_3=...` says otherwise."""
    items: list[tuple[int, int] | None] = [None, *([FREE] * (count - 1)), None]
    for name, item in special.items():
        items[int(name.removeprefix("at_"))] = item
    return items


def test_equal_steps_are_cut_into_equal_stages() -> None:
    assert choose_points([1.0] * 12, crossing(12), 3) == (4, 8)


def test_one_stage_is_not_cut() -> None:
    assert choose_points([1.0], crossing(1), 1) == ()
    assert choose_points([], [None], 1) == ()


def test_a_heavy_step_stands_alone() -> None:
    assert choose_points([1.0, 1.0, 10.0, 1.0, 1.0], crossing(5), 3) == (2, 3)


def test_among_near_equal_cuts_the_lightest_is_taken() -> None:
    items: list[tuple[int, int] | None] = [None, *([(10**6, 4)] * 199), None]
    items[101] = (10**3, 1)
    assert choose_points([1e-3] * 200, items, 2, seconds_per_byte=1e-12, seconds_per_tensor=0) == (101,)
    items[101], items[110] = (10**6, 4), (10**3, 1)
    found = choose_points([1e-3] * 200, items, 2, seconds_per_byte=1e-12, seconds_per_tensor=0)
    assert 97 <= found[0] <= 103, "10 steps off the middle is not near equal"


def test_many_bytes_move_the_cut_away_from_the_middle() -> None:
    costs = [1e-3] * 10
    assert choose_points(costs, crossing(10, at_5=(10**9, 1)), 2) in {(4,), (6,)}


def test_forbidden_points_are_not_used() -> None:
    only_at_2 = [None if point != 2 else FREE for point in range(11)]
    assert choose_points([1.0] * 10, only_at_2, 2) == (2,)


def test_too_many_stages_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="cannot be cut into 3 stages"):
        choose_points([1.0, 1.0], crossing(2), 3)


@given(st.lists(st.floats(0.001, 10), min_size=4, max_size=9), st.integers(2, 4))
def test_no_other_cut_is_better_by_more_than_the_tolerance(costs: list[float], stages: int) -> None:
    from itertools import combinations, pairwise

    def slowest(points: tuple[int, ...]) -> float:
        return max(sum(costs[low:high]) for low, high in pairwise((0, *points, len(costs))))

    found = choose_points(costs, crossing(len(costs)), stages)
    best = min(slowest(points) for points in combinations(range(1, len(costs)), stages - 1))
    assert slowest(found) <= best * (1 + BALANCE_TOLERANCE) + 1e-9
