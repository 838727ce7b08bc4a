import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from compressor.search.mixes import Mix, Option, best_within, spread, undominated_mixes

OPTIONS = st.builds(Option, st.integers(0, 20).map(float), st.integers(0, 20).map(float))
GROUPS = st.lists(st.lists(OPTIONS, min_size=1, max_size=4), min_size=1, max_size=5)


def every_mix(groups: list[list[Option]]) -> list[Mix]:
    return [
        Mix(choices, sum(option.cost for option in taken), sum(option.harm for option in taken))
        for choices in itertools.product(*(range(len(options)) for options in groups))
        for taken in [[options[place] for options, place in zip(groups, choices, strict=True)]]
    ]


@settings(max_examples=200, deadline=None)
@given(GROUPS, st.integers(0, 60))
def test_the_best_mix_is_the_one_that_trying_all_finds(groups: list[list[Option]], budget: int) -> None:
    found = best_within(undominated_mixes(groups), budget)
    fitting = [mix for mix in every_mix(groups) if mix.harm <= budget]
    if found is None:
        assert not fitting
        return
    assert (found.cost, found.harm) == min((mix.cost, mix.harm) for mix in fitting)


@settings(max_examples=100, deadline=None)
@given(GROUPS)
def test_a_mix_costs_and_harms_what_its_choices_do(groups: list[list[Option]]) -> None:
    mixes = undominated_mixes(groups)
    every = {mix.choices: mix for mix in every_mix(groups)}
    assert all(every[mix.choices] == mix for mix in mixes)
    assert all(a.harm < b.harm and a.cost > b.cost for a, b in itertools.pairwise(mixes))


@settings(max_examples=100, deadline=None)
@given(GROUPS, st.integers(2, 12))
def test_with_little_room_mixes_stay_true_and_the_safest_stays(groups: list[list[Option]], room: int) -> None:
    mixes = undominated_mixes(groups, most_states=room)
    every = {mix.choices: mix for mix in every_mix(groups)}
    assert len(mixes) <= room
    assert all(every[mix.choices] == mix for mix in mixes)
    assert mixes[0].harm == min(mix.harm for mix in every.values())


def test_many_groups_are_solved_in_little_time_and_within_the_budget() -> None:
    groups = [
        [Option(1.0 + 0.01 * i, 0.0), Option(0.5, 0.1 + 0.013 * i), Option(0.3, 0.5 + 0.017 * i)] for i in range(60)
    ]
    found = best_within(undominated_mixes(groups), 10.0)
    assert found is not None
    assert found.harm <= 10.0
    assert found.cost < sum(options[0].cost for options in groups) * 0.8


def test_a_group_without_options_has_no_mix() -> None:
    assert undominated_mixes([[Option(1, 1)], []]) == ()


def test_nothing_fits_a_budget_below_the_safest_mix() -> None:
    assert best_within(undominated_mixes([[Option(1, 2), Option(3, 1)]]), 0.5) is None


def test_a_spread_has_both_ends_and_even_costs() -> None:
    mixes = [Mix((place,), 100.0 - place, float(place)) for place in range(101)]
    assert [mix.harm for mix in spread(mixes, 5)] == [0, 25, 50, 75, 100]
    assert spread(mixes[:2], 5) == tuple(mixes[:2])
