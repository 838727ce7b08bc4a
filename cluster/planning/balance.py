"""Which of its shapes each of several models takes, so that no kind of room runs out long before the others. Pure.

Room is the cores of each device, the GPUs, and the memory of all nodes together. The models are given shapes one after
the other, the greediest first, and then change them one at a time while that leaves the scarcest room less used.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from cluster.planning.bound import supply
from cluster.planning.deployment import Demand
from cluster.planning.machines import Node
from cluster.planning.replicas import Growth, NoRoom
from cluster.planning.shapes import Shape

_MEMORY: Final = "memory"
_PASSES: Final = 8
_REFINEMENTS: Final = 12
_BY_THE_WAY: Final = 1e-3
"""Weight of all room that is used, against that of the scarcest: of equals, the thriftier shape is taken."""


def balanced(demands: Sequence[Demand], choices: Sequence[Sequence[Shape]], nodes: Sequence[Node]) -> list[Shape]:
    """A shape for each model, of those it has to choose from."""
    have = dict(supply(nodes)) | {_MEMORY: float(sum(node.memory for node in nodes))}
    uses = [
        [_share(demand, shape, have) for shape in shapes_of] for demand, shapes_of in zip(demands, choices, strict=True)
    ]
    taken = dict.fromkeys(have, 0.0)
    chosen = [0] * len(demands)
    order = sorted(range(len(demands)), key=lambda model: -min(max(use.values()) for use in uses[model]))
    for model in order:
        chosen[model] = _best(uses[model], taken)
        _add(taken, uses[model][chosen[model]], 1.0)
    for _ in range(_PASSES):
        changed = False
        for model in order:
            before = chosen[model]
            _add(taken, uses[model][before], -1.0)
            chosen[model] = _best(uses[model], taken)
            _add(taken, uses[model][chosen[model]], 1.0)
            changed = changed or chosen[model] != before
        if not changed:
            break
    return [shapes_of[place] for shapes_of, place in zip(choices, chosen, strict=True)]


def refined(
    demands: Sequence[Demand], choices: Sequence[Sequence[Shape]], nodes: Sequence[Node], first: Sequence[Shape]
) -> list[Shape]:
    """`first`, but that models which find no more room take other shapes, while all bear more for it.

    Sums of room do not tell whether it lies on the same node: packing does.
    """
    best, reached, stuck = list(first), *_grown(demands, first, nodes)
    tried: set[tuple[int, int]] = set()
    for _ in range(_REFINEMENTS):
        if stuck is None:
            break
        options = [
            (place, shape)
            for place, shape in enumerate(choices[stuck])
            if (stuck, place) not in tried and _kinds(shape) != _kinds(best[stuck])
        ]
        if not options:
            break
        _, shape = options[0]
        tried |= {(stuck, other) for other, one in enumerate(choices[stuck]) if _kinds(one) == _kinds(shape)}
        trial = [*best[:stuck], shape, *best[stuck + 1 :]]
        rounds, next_stuck = _grown(demands, trial, nodes)
        if rounds > reached:
            best, reached, stuck = trial, rounds, next_stuck
            tried.clear()
    return best


def _grown(demands: Sequence[Demand], chosen: Sequence[Shape], nodes: Sequence[Node]) -> tuple[float, int | None]:
    """How many times their rates the models bear, and which of them finds no more room."""
    try:
        growth = Growth(demands, chosen, nodes)
    except NoRoom:
        return 0.0, None
    growth.until(float("inf"))
    return growth.rounds, growth.least


def _kinds(shape: Shape) -> tuple[tuple[str, float], ...]:
    return tuple((stage.device, stage.cpus) for stage in shape.stages)


def _share(demand: Demand, shape: Shape, have: Mapping[str, float]) -> dict[str, float]:
    """Of each kind of room, the share that the model's rate takes."""
    use = dict.fromkeys(have, 0.0)
    for place, stage in enumerate(shape.stages):
        replicas = demand.rate * demand.rows / shape.capacity(place)
        use[stage.device] += replicas * (stage.gpus or stage.cpus) / have[stage.device]
        use[_MEMORY] += replicas * stage.memory / have[_MEMORY]
    return use


def _best(uses: Sequence[Mapping[str, float]], taken: Mapping[str, float]) -> int:
    def pressure(place: int) -> float:
        after = [taken[kind] + share for kind, share in uses[place].items()]
        return max(after) + _BY_THE_WAY * sum(after)

    return min(range(len(uses)), key=pressure)


def _add(taken: dict[str, float], use: Mapping[str, float], sign: float) -> None:
    for kind, share in use.items():
        taken[kind] += sign * share
