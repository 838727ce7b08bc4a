from hypothesis import given
from hypothesis import strategies as st

from cluster.fair_share import Claim, fair_shares

CPU = {"CPU": 1.0}


def claim(wanted: int, floor: int = 1, **more: object) -> Claim:
    return Claim((CPU,), (floor,), (wanted,), **more)  # type: ignore[arg-type]


def test_who_wants_little_gets_it_and_who_floods_gets_the_rest() -> None:
    assert fair_shares([claim(100), claim(2)], {"CPU": 8}) == [(6,), (2,)]


def test_two_that_flood_get_the_same() -> None:
    assert fair_shares([claim(100), claim(100)], {"CPU": 8}) == [(4,), (4,)]


def test_a_weight_buys_so_many_times_the_room() -> None:
    assert fair_shares([claim(100, weight=3), claim(100)], {"CPU": 8}) == [(6,), (2,)]


def test_a_lower_priority_number_goes_first_but_leaves_everyone_the_minimum() -> None:
    assert fair_shares([claim(100), claim(100, priority=0)], {"CPU": 8}) == [(1,), (7,)]


def test_minima_are_kept_even_where_they_do_not_fit() -> None:
    assert fair_shares([claim(9, floor=3), claim(9, floor=3)], {"CPU": 4}) == [(3,), (3,)]


def test_a_pipeline_grows_at_the_stage_that_lacks_most() -> None:
    two = Claim((CPU, CPU), (1, 1), (2, 8))
    assert fair_shares([two], {"CPU": 6}) == [(2, 4)]


def test_what_comes_after_another_claim_takes_nothing_from_it() -> None:
    later = claim(8, priority=0, after=(0,))
    assert fair_shares([claim(8), later], {"CPU": 12}) == [(8,), (4,)]
    assert fair_shares([claim(8), later, claim(100)], {"CPU": 16}) == [(8,), (1,), (7,)]


def test_each_resource_counts() -> None:
    gpu = Claim(({"CPU": 1.0, "GPU": 1.0},), (1,), (4,))
    assert fair_shares([gpu, claim(100)], {"CPU": 8, "GPU": 2}) == [(2,), (6,)]


claims = st.builds(
    Claim,
    st.just((CPU, {"CPU": 0.5})),
    st.tuples(st.integers(0, 2), st.integers(0, 2)),
    st.tuples(st.integers(0, 12), st.integers(0, 12)),
    st.integers(0, 2),
    st.floats(0.1, 10),
)


@given(st.lists(claims, max_size=5), st.floats(0, 40))
def test_nobody_gets_more_than_it_wants_and_all_fit_beyond_the_minima(asked: list[Claim], cpus: float) -> None:
    granted = fair_shares(asked, {"CPU": cpus})
    taken = floors = 0.0
    for one, counts in zip(asked, granted, strict=True):
        for bundle, count, low, high in zip(one.bundles, counts, one.floor, one.wanted, strict=True):
            assert min(low, high) <= count <= high
            taken += bundle["CPU"] * count
            floors += bundle["CPU"] * min(low, high)
    assert taken <= max(cpus, floors) + 1e-3
    for one, counts in zip(asked, granted, strict=True):
        for bundle, count, high in zip(one.bundles, counts, one.wanted, strict=True):
            assert count == high or taken + bundle["CPU"] > cpus, "room is left where somebody wants it"
