"""Which option for each group: every mix that no other beats in both cost and harm.

The multiple-choice knapsack problem (H. Kellerer, U. Pferschy, D. Pisinger, Knapsack Problems, 2004, chapter 11),
solved by dynamic programming over undominated partial mixes: one pass gives the answer for every budget.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

MOST_STATES: Final = 4096
"""Partial mixes that are kept. Beyond it, of those with nearly the same harm only the cheapest stays."""


@dataclass(frozen=True, slots=True)
class Option:
    """One way to treat a group. cost: what is minimised, such as seconds. harm: what the budget is of; at least 0."""

    cost: float
    harm: float


@dataclass(frozen=True, slots=True)
class Mix:
    """choices: for each group the place of its option. cost and harm are sums."""

    choices: tuple[int, ...]
    cost: float
    harm: float


@dataclass(frozen=True, slots=True)
class _Partial:
    cost: float
    harm: float
    choice: int
    before: "_Partial | None"


def undominated_mixes(groups: Sequence[Sequence[Option]], *, most_states: int = MOST_STATES) -> tuple[Mix, ...]:
    """Mixes by rising harm and falling cost. Exact as long as no more than `most_states` partial mixes are undominated.

    Of mixes with the same cost and harm, the one whose first different choice comes first is kept.
    """
    states: list[_Partial] = [_Partial(0.0, 0.0, -1, None)]
    for options in groups:
        if not options:
            return ()
        grown = [
            _Partial(state.cost + option.cost, state.harm + option.harm, place, state)
            for state in states
            for place, option in enumerate(options)
        ]
        states = _thinned(_undominated(grown), most_states)
    return tuple(Mix(_choices(state), state.cost, state.harm) for state in states)


def best_within(mixes: Sequence[Mix], budget: float) -> Mix | None:
    """The cheapest mix whose harm is at most `budget`; None where there is none."""
    return min((mix for mix in mixes if mix.harm <= budget), key=lambda mix: (mix.cost, mix.harm), default=None)


def spread(mixes: Sequence[Mix], count: int) -> tuple[Mix, ...]:
    """At most `count` of the mixes, with costs as evenly apart as there are; both ends among them."""
    if len(mixes) <= count:
        return tuple(mixes)
    if count < 2:
        return tuple(mixes[-count:]) if count else ()
    dearest, cheapest = mixes[0].cost, mixes[-1].cost
    wanted = [dearest + (cheapest - dearest) * place / (count - 1) for place in range(count)]
    chosen = dict.fromkeys(
        min(range(len(mixes)), key=lambda place: (abs(mixes[place].cost - cost), place)) for cost in wanted
    )
    return tuple(mixes[place] for place in sorted(chosen))


def _undominated(states: list[_Partial]) -> list[_Partial]:
    """By rising harm; each is cheaper than all before it."""
    states.sort(key=lambda state: (state.harm, state.cost))
    kept: list[_Partial] = []
    for state in states:
        if not kept or state.cost < kept[-1].cost:
            kept.append(state)
    return kept


def _thinned(states: list[_Partial], most: int) -> list[_Partial]:
    if len(states) <= most:
        return states
    low, high = states[0].harm, states[-1].harm
    cheapest: dict[int, _Partial] = {}
    for state in states:  # by rising harm and falling cost: the last of a bucket is its cheapest
        cheapest[min(most - 2, int((state.harm - low) / (high - low) * (most - 1)))] = state
    kept = list(cheapest.values())
    return kept if kept[0] is states[0] else [states[0], *kept]


def _choices(state: _Partial) -> tuple[int, ...]:
    found: list[int] = []
    at: _Partial | None = state
    while at is not None and at.before is not None:
        found.append(at.choice)
        at = at.before
    return tuple(reversed(found))
