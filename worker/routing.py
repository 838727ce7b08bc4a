"""Which replica gets the next request: pure, so that the link and the planner's simulator decide alike."""

import random
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


def choose(candidates: Sequence[T], wait: Callable[[T], float], chance: random.Random) -> T | None:
    """One of `candidates` by power of two choices (Mitzenmacher 2001); None where there are none.

    Of two drawn at random, the one with the less `wait` (seconds until it would answer); of equals, either.
    """
    if len(candidates) > 2:
        candidates = chance.sample(candidates, 2)
    if len(candidates) < 2:
        return candidates[0] if candidates else None
    first, second = map(wait, candidates)
    if first == second:
        return chance.choice(candidates)
    return candidates[second < first]
