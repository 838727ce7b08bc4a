from hypothesis import given
from hypothesis import strategies as st

from compressor.search.pareto import front

POINTS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=20)


@given(POINTS)
def test_no_point_of_the_front_is_beaten_and_every_other_is(points: list[tuple[int, int]]) -> None:
    kept = front(points, lambda point: point)

    def beats(a: tuple[int, int], b: tuple[int, int]) -> bool:
        return a != b and a[0] <= b[0] and a[1] <= b[1]

    assert not any(beats(other, point) for point in kept for other in points)
    assert all(point in kept or any(beats(other, point) for other in kept) for point in points)
    assert len(set(kept)) == len(kept)


def test_the_front_keeps_the_order_it_was_given() -> None:
    assert front([(3, 1), (2, 2), (3, 3), (1, 3)], lambda point: point) == [(3, 1), (2, 2), (1, 3)]
