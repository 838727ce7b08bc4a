"""The points that no other point beats in everything."""

from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


def front(points: Sequence[T], costs: Callable[[T], tuple[float, ...]]) -> list[T]:
    """The undominated points, in their order. `costs`: what is to be small; of equal points the first stays."""
    weighed = [(costs(point), point) for point in points]
    return [
        point
        for place, (cost, point) in enumerate(weighed)
        if not any(_beats(other, cost, earlier=index < place) for index, (other, _) in enumerate(weighed))
    ]


def _beats(other: tuple[float, ...], cost: tuple[float, ...], *, earlier: bool) -> bool:
    if other == cost:
        return earlier
    return all(theirs <= mine for theirs, mine in zip(other, cost, strict=True))
