"""Where to cut a chain of steps into stages: dynamic programming over its prefixes. Pure.

`even_cuts` is AlpaServe's partition (Li et al., OSDI 2023, section 4.1): so many stages, the slowest as fast as can be.
`split` is PipeDream's (Narayanan et al., SOSP 2019, section 3.1): so many workers, of which a stage may get several.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

Cost = Callable[[int, int, int], float]
"""(place of the stage, low, high) → seconds; infinite where such a stage cannot be."""


@dataclass(frozen=True, slots=True)
class Cuts:
    """points: where to cut. workers: of each stage. slowest: seconds of the slowest stage, over its workers."""

    points: tuple[int, ...]
    workers: tuple[int, ...]
    slowest: float


def even_cuts(edges: Sequence[int], stages: int, cost: Cost) -> Cuts | None:
    """The cuts at `edges` (ascending, ends included) into `stages` whose slowest stage is fastest.

    Among equals the one whose stages take the least together. None: no such cuts are possible.
    """
    best: dict[int, tuple[float, float, tuple[int, ...]]] = {edges[0]: (0.0, 0.0, ())}
    for place in range(stages):
        last = place == stages - 1
        found: dict[int, tuple[float, float, tuple[int, ...]]] = {}
        for high in edges[-1:] if last else edges[1:-1]:
            for low, (slowest, together, points) in best.items():
                if low >= high:
                    continue
                here = cost(place, low, high)
                option = (max(slowest, here), together + here, points if last else (*points, high))
                if high not in found or option[:2] < found[high][:2]:
                    found[high] = option
        best = found
    if edges[-1] not in best or best[edges[-1]][0] == float("inf"):
        return None
    slowest, _, points = best[edges[-1]]
    return Cuts(points, (1,) * stages, slowest)


def split(edges: Sequence[int], workers: int, most_stages: int, cost: Callable[[int, int], float]) -> Cuts | None:
    """The cuts, and the workers of each stage, that give the most throughput with `workers` workers at most.

    A stage's time over its workers counts; `cost(low, high)` is its seconds. Among equals, fewer stages win. None: no
    such cuts are possible.
    """
    start = (0.0, ())
    best: dict[tuple[int, int], tuple[float, tuple[tuple[int, int], ...]]] = {(edges[0], 0): start}
    answer: tuple[float, tuple[tuple[int, int], ...]] | None = None
    for _ in range(most_stages):
        found: dict[tuple[int, int], tuple[float, tuple[tuple[int, int], ...]]] = {}
        for (low, used), (slowest, path) in best.items():
            for high in edges:
                if high <= low:
                    continue
                here = cost(low, high)
                if here == float("inf"):
                    continue
                for own in range(1, workers - used + 1):
                    option = (max(slowest, here / own), (*path, (high, own)))
                    key = (high, used + own)
                    if key not in found or option[0] < found[key][0]:
                        found[key] = option
        for (high, _), option in found.items():
            if high == edges[-1] and option[0] < float("inf") and (answer is None or option[0] < answer[0]):
                answer = option
        best = {key: option for key, option in found.items() if key[0] != edges[-1]}
    if answer is None:
        return None
    slowest, path = answer
    return Cuts(tuple(high for high, _ in path[:-1]), tuple(own for _, own in path), slowest)
