"""From what was measured of parts to what is expected of wholes: pure arithmetic."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

NOISE: Final = 0.002
"""Share of the baseline's seconds below which a difference between two layers' programs is not one."""


@dataclass(frozen=True, slots=True)
class Anchor:
    """One treatment on every group that takes it, judged as a whole.

    harm: the sum of its parts. drop: in the figure's unit.
    """

    treatment: str
    harm: float
    drop: float


def drop_for_harm(anchors: Sequence[Anchor]) -> float:
    """The drop that one unit of harm brings: least squares through the origin; 0 where nothing was lost."""
    weight = sum(anchor.harm**2 for anchor in anchors)
    return max(0.0, sum(anchor.drop * anchor.harm for anchor in anchors) / weight) if weight else 0.0


def harm_budget(anchors: Sequence[Anchor], allowed: float) -> float:
    """The harm that a drop of `allowed` stands for. Infinite where no anchor lost anything."""
    slope = drop_for_harm(anchors)
    return allowed / slope if slope else math.inf


def scaled_gains(
    gains: Mapping[tuple[str, str], float], wholes: Mapping[str, float], baseline: float
) -> dict[tuple[str, str], float]:
    """Seconds that each (group, treatment) saves inside the whole model.

    What layers save as programs of their own, scaled for each treatment so that together they save what the whole
    model did (`wholes`: its seconds by treatment): a layer inside a program is fused with its neighbours, and alone it
    is not. Where the whole was not timed, or alone its layers saved nothing, the scale is 1. Rounded to `NOISE` of the
    baseline, so that chance decides nothing.
    """
    found: dict[tuple[str, str], float] = {}
    for treatment in dict.fromkeys(name for _, name in gains):
        mine = {place: gain for place, gain in gains.items() if place[1] == treatment}
        total = sum(mine.values())
        whole = wholes.get(treatment)
        scale = (baseline - whole) / total if whole is not None and total > 0 else 1.0
        step = baseline * NOISE
        found |= {place: round(gain * max(0.0, scale) / step) * step for place, gain in mine.items()}
    return found


def repaired(
    choices: Sequence[int], costs: Sequence[Sequence[float]], harms: Sequence[Sequence[float]], most_harm: float
) -> tuple[int, ...] | None:
    """The choices after greedy repair: as long as the harm is over `most_harm`, the one change to a milder option that
    takes away the most harm for the cost that it brings. None where even the mildest options are over it.
    """
    current = list(choices)
    while sum(harms[group][place] for group, place in enumerate(current)) > most_harm:
        changes = [
            (
                _worth(harms[group][place] - harms[group][other], costs[group][other] - costs[group][place]),
                -group,
                -other,
            )
            for group, place in enumerate(current)
            for other in range(len(harms[group]))
            if harms[group][other] < harms[group][place]
        ]
        if not changes:
            return None
        _, group, other = max(changes)
        current[-group] = -other
    return tuple(current)


def _worth(less_harm: float, more_cost: float) -> float:
    return math.inf if more_cost <= 0 else less_harm / more_cost
