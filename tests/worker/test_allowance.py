from hypothesis import given
from hypothesis import strategies as st

from worker.allowance import Allowance


@given(st.floats(0, 1), st.integers(0, 20), st.lists(st.booleans(), max_size=300))
def test_what_is_taken_stays_within_the_share_and_the_first_burst(share: float, most: int, calls: list[bool]) -> None:
    allowance = Allowance(share, most)
    taken = 0
    for earned, takes in enumerate(calls, 1):
        allowance.earn()
        taken += takes and allowance.take()
        assert taken <= most + share * earned + 1e-6


def test_an_empty_one_gives_again_once_enough_was_earned() -> None:
    allowance = Allowance(0.25, 1)
    assert allowance.take()
    assert not allowance.take()
    for _ in range(4):
        allowance.earn()
    assert allowance.take()
