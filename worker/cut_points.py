"""Where to cut: a pure function of what each step costs and of what would travel.

The partition of a chain into stages by dynamic programming over its prefixes, as pipeline planners do it (PipeDream,
Narayanan et al., 2019), with a second pass that takes the lightest of the near-best.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from worker.errors import InvalidRequest

BALANCE_TOLERANCE: Final = 0.03
"""Cuts whose slowest stage is within this share of the best one count as equal; the lightest of them is taken."""


def choose_points(
    costs: Sequence[float],
    crossing: Sequence[tuple[int, int] | None],
    stages: int,
    *,
    seconds_per_byte: float = 2e-9,
    seconds_per_tensor: float = 2e-5,
) -> tuple[int, ...]:
    """Where to cut so that the slowest stage is as fast as it can be and, among near-equals, the least travels.

    Args:
        costs: seconds of each step.
        crossing: as from `travel`; one longer than `costs`.
        stages: how many stages there shall be.
        seconds_per_byte: what a byte costs the stage that sends it, and the one that receives it.
        seconds_per_tensor: the same for each tensor.

    Raises:
        InvalidRequest: the program cannot be cut into that many stages.
    """
    allowed = [point for point, item in enumerate(crossing) if item is not None]
    if stages == 1:
        return ()
    if stages < 1 or len(allowed) < stages - 1:
        raise InvalidRequest(f"the program cannot be cut into {stages} stages: it has {len(allowed)} places for a cut")
    toll = {
        point: item[0] * seconds_per_byte + item[1] * seconds_per_tensor
        for point in allowed
        if (item := crossing[point]) is not None
    }
    before = [0.0]
    for cost in costs:
        before.append(before[-1] + cost)
    edges = [0, *allowed, len(costs)]

    def stage_cost(low: int, high: int) -> float:
        return before[high] - before[low] + toll.get(low, 0.0) + toll.get(high, 0.0)

    def slowest(low: int, high: int) -> _Cost:
        return (stage_cost(low, high), 0.0)

    (best, _), _ = _shortest(edges, stages, slowest)
    bound = best * (1 + BALANCE_TOLERANCE)

    def lightest(low: int, high: int) -> _Cost:
        slow = stage_cost(low, high)
        return (0.0 if slow <= bound else slow, toll.get(high, 0.0))

    _, points = _shortest(edges, stages, lightest)
    return points


_Cost = tuple[float, float]
"""(of the slowest stage, of all that travels); less of the first comes before less of the second."""


def _shortest(edges: Sequence[int], stages: int, cost: Callable[[int, int], _Cost]) -> tuple[_Cost, tuple[int, ...]]:
    """The cheapest way from the first edge to the last in `stages` steps, by dynamic programming over prefixes."""
    reached: Mapping[int, tuple[_Cost, tuple[int, ...]]] = {edges[0]: ((0.0, 0.0), ())}
    for stage in range(stages):
        last = stage == stages - 1
        following: dict[int, tuple[_Cost, tuple[int, ...]]] = {}
        for high in edges[-1:] if last else edges[1:-1]:
            options = []
            for low, ((slowest, travels), path) in reached.items():
                if low < high:
                    here = cost(low, high)
                    options.append(((max(slowest, here[0]), travels + here[1]), path))
            if options:
                total, path = min(options, key=lambda option: option[0])
                following[high] = (total, path if last else (*path, high))
        reached = following
    return reached[edges[-1]]
