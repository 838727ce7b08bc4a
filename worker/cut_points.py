"""Where to cut: a pure function of what each step costs and of what would travel.

The partition of a chain into stages by dynamic programming over its prefixes, as pipeline planners do it (PipeDream,
Narayanan et al., 2019), with a second pass that takes the lightest of the near-best.
"""

from collections.abc import Callable, Mapping, Sequence
from operator import add
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

    best, _ = _shortest(edges, stages, stage_cost, max)
    bound = best * (1 + BALANCE_TOLERANCE)

    def weight(low: int, high: int) -> float:
        return toll.get(high, 0.0) if stage_cost(low, high) <= bound else float("inf")

    _, points = _shortest(edges, stages, weight, add)
    return points


def _shortest(
    edges: Sequence[int], stages: int, cost: Callable[[int, int], float], combine: Callable[[float, float], float]
) -> tuple[float, tuple[int, ...]]:
    """The cheapest way from the first edge to the last in `stages` steps, by dynamic programming over prefixes."""
    reached: Mapping[int, tuple[float, tuple[int, ...]]] = {edges[0]: (0.0, ())}
    for stage in range(stages):
        last = stage == stages - 1
        following: dict[int, tuple[float, tuple[int, ...]]] = {}
        for high in edges[-1:] if last else edges[1:-1]:
            options = [
                (combine(so_far, cost(low, high)), path) for low, (so_far, path) in reached.items() if low < high
            ]
            if options:
                total, path = min(options, key=lambda option: option[0])
                following[high] = (total, path if last else (*path, high))
        reached = following
    return reached[edges[-1]]
