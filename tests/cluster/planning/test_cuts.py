"""Dynamic programming over cuts, against trying them all."""

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.planning.cuts import even_cuts, split

COSTS = st.lists(st.integers(0, 50), min_size=1, max_size=7)


@settings(deadline=None)
@given(COSTS, st.integers(1, 5), st.lists(st.integers(1, 4), min_size=5, max_size=5))
def test_even_cuts_are_as_good_as_the_best_of_all(costs: list[int], stages: int, slowness: list[int]) -> None:
    edges = range(len(costs) + 1)

    def cost(place: int, low: int, high: int) -> float:
        return float(sum(costs[low:high]) * slowness[place])

    tried = [
        max(cost(place, low, high) for place, (low, high) in enumerate(itertools.pairwise((0, *points, len(costs)))))
        for points in itertools.combinations(range(1, len(costs)), stages - 1)
    ]
    found = even_cuts(list(edges), stages, cost)
    assert (found is None) == (not tried)
    if found is not None:
        assert found.slowest == min(tried)
        assert len(found.points) == stages - 1
        assert list(found.points) == sorted(set(found.points))
        whole = (0, *found.points, len(costs))
        assert found.slowest == max(cost(place, *pair) for place, pair in enumerate(itertools.pairwise(whole)))


@settings(deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=6), st.integers(1, 5), st.integers(1, 4))
def test_split_is_as_good_as_the_best_of_all(costs: list[int], workers: int, most_stages: int) -> None:
    def cost(low: int, high: int) -> float:
        return float(sum(costs[low:high]))

    tried = []
    for stages in range(1, min(most_stages, workers, len(costs)) + 1):
        for points in itertools.combinations(range(1, len(costs)), stages - 1):
            pairs = list(itertools.pairwise((0, *points, len(costs))))
            tried += [
                max(cost(*pair) / count for pair, count in zip(pairs, own, strict=True))
                for own in itertools.product(range(1, workers + 1), repeat=stages)
                if sum(own) <= workers
            ]
    found = split(list(range(len(costs) + 1)), workers, most_stages, cost)
    assert found is not None
    assert found.slowest == min(tried)
    assert sum(found.workers) <= workers


def test_a_stage_that_cannot_be_is_not_made() -> None:
    def cost(place: int, low: int, high: int) -> float:
        return float("inf") if high - low > 2 else 1.0

    assert even_cuts([0, 1, 2, 3, 4], 1, cost) is None
    assert even_cuts([0, 1, 2, 3, 4], 2, cost) is not None
