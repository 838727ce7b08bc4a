"""The choice of a replica."""

import random

from hypothesis import given
from hypothesis import strategies as st

from worker.routing import choose


def test_nobody_is_chosen_where_there_is_nobody() -> None:
    assert choose([], float, random.Random(0)) is None


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=2), st.integers(0, 99))
def test_of_two_the_one_with_the_less_wait_is_chosen(waits: list[float], seed: int) -> None:
    assert choose(waits, float, random.Random(seed)) == min(waits)


@given(st.lists(st.floats(0, 1e6), min_size=3, max_size=9, unique=True), st.integers(0, 99))
def test_the_busiest_of_several_is_never_chosen(waits: list[float], seed: int) -> None:
    assert choose(waits, float, random.Random(seed)) != max(waits)


def test_equals_share_the_work() -> None:
    chance = random.Random(0)
    chosen = [choose(["a", "b"], lambda _: 1.0, chance) for _ in range(200)]
    assert 60 < chosen.count("a") < 140
