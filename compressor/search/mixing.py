"""Chooses a treatment for each group: from sensitivities and latencies to recipes that keep the budget on calibration
data.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from compressor.bootstrap import Interval
from compressor.search.fit import Anchor, drop_for_harm, harm_budget, repaired, scaled_gains
from compressor.search.groups import Candidate, Group
from compressor.search.laboratory import Judged, Laboratory, Recipe
from compressor.search.mixes import Option, best_within, spread, undominated_mixes
from compressor.search.treatments import merged

MOST_GROUPS: Final = 48
"""Beyond it, layers of a block are decided together."""

CALIBRATION_LEVEL: Final = 0.8
"""Of the interval by which a mix is judged on calibration data; the held-out data are asked at the usual level."""

SPREAD: Final = 4
REPAIRS: Final = 3
BUDGET_SHARES: Final = (0.5, 1.0, 2.0)
SAFETY: Final = 0.9
"""A repaired mix aims at this share of the budget."""

Drop = Callable[[Judged], Interval]


@dataclass(slots=True)
class Point:
    """One recipe and all that was found out about it. The search fills it in as it goes on.

    drop: on calibration data. seconds: at the objective's sizes, compiled; None where it was not timed.
    """

    name: str
    recipe: Recipe
    treatments: Mapping[str, str]
    drop: Interval
    distance: float
    bytes: int
    seconds: float | None = None
    held_out: Interval | None = None
    verdict: str = ""


@dataclass(frozen=True, slots=True)
class LayerRow:
    """One (group, treatment): what it brings and what it harms."""

    group: str
    treatment: str
    distance: float
    drop: float
    alone_seconds: float | None
    gain_seconds: float | None
    saved_bytes: int
    problem: str = ""


@dataclass(slots=True)
class Mixing:
    """What came of it. points: the baseline first. groups: with the candidates that work."""

    groups: tuple[Group, ...]
    rows: list[LayerRow] = field(default_factory=list)
    points: dict[Recipe, Point] = field(default_factory=dict)
    costs: list[list[float]] = field(default_factory=list)
    harms: list[list[float]] = field(default_factory=list)

    def choices(self, point: Point) -> tuple[int, ...] | None:
        """The place of each group's treatment in the point; None where it is not of these groups."""
        if point.treatments.keys() != {group.name for group in self.groups}:
            return None
        return tuple(_place(group, point.treatments[group.name]) for group in self.groups)

    def cost(self, point: Point) -> float:
        """What the point is expected to cost, beyond the uncompressed model."""
        return sum(self.costs[group][place] for group, place in enumerate(self.choices(point) or ()))


def recipe_of(groups: Sequence[Group], choices: Sequence[int]) -> Recipe:
    """The steps of each group's choice, as one recipe. 0 is to leave a group as it is."""
    chosen = [group.candidates[place - 1] for group, place in zip(groups, choices, strict=True) if place]
    return merged([step for candidate in chosen for step in candidate.steps])


def treatments_of(groups: Sequence[Group], choices: Sequence[int]) -> dict[str, str]:
    return {
        group.name: group.candidates[place - 1].treatment if place else ""
        for group, place in zip(groups, choices, strict=True)
    }


def explore(lab: Laboratory, groups: Sequence[Group], drop: Drop, allowed: float) -> Mixing:
    """Measures groups and treatments one by one, solves, and tries the mixes as wholes on calibration data.

    Returns:
        Every point that was judged. Those whose drop's upper end is within `allowed` may go on to be compiled.
    """
    base = lab.judged([()], "judging the uncompressed model").get(())
    if base is None:
        return Mixing(tuple(groups))
    pairs = [(group, candidate) for group in groups for candidate in group.candidates]
    alone = lab.judged([candidate.steps for _, candidate in pairs], "sensitivity")
    working = _working(groups, alone)
    mixing = Mixing(working)
    mixing.points[()] = Point("uncompressed", (), {}, drop(base), 0.0, base.bytes)
    anchors = _anchors(lab, mixing, alone, drop)
    gains, seconds = _gains(lab, mixing, alone, base.bytes, anchors)
    mixing.rows = _rows(groups, alone, drop, gains=gains, seconds=seconds, base_bytes=base.bytes)
    mixing.costs = [[0.0, *(-gains.get((g.name, c.treatment), 0.0) for c in g.candidates)] for g in working]
    mixing.harms = [[0.0, *(alone[c.steps].distance for c in g.candidates)] for g in working]
    options = [
        [Option(cost, harm) for cost, harm in zip(costs, harms, strict=True)]
        for costs, harms in zip(mixing.costs, mixing.harms, strict=True)
    ]
    front = undominated_mixes(options)
    budget = harm_budget(anchors, allowed)
    fitting = [best_within(front, budget * share) for share in BUDGET_SHARES]
    wanted = [*(mix.choices for mix in fitting if mix), *(mix.choices for mix in spread(front, SPREAD))]
    _try(lab, mixing, list(dict.fromkeys(wanted)), drop, "mixes")
    _repair(lab, mixing, drop, allowed, drop_for_harm(anchors))
    return mixing


def _working(groups: Sequence[Group], alone: Mapping[Recipe, Judged]) -> tuple[Group, ...]:
    """The groups with the candidates that could be done and judged."""
    found = []
    for group in groups:
        able = tuple(c for c in group.candidates if c.steps in alone and not alone[c.steps].problem)
        if able:
            found.append(Group(group.name, group.layers, able))
    return tuple(found)


def _anchors(lab: Laboratory, mixing: Mixing, alone: Mapping[Recipe, Judged], drop: Drop) -> list[Anchor]:
    """Each treatment on every group that takes it, as a whole."""
    names = dict.fromkeys(c.treatment for group in mixing.groups for c in group.candidates)
    chosen = {name: [_place(group, name) for group in mixing.groups] for name in names}
    _try(lab, mixing, list(chosen.values()), drop, "one treatment everywhere", names=list(names))
    recipes = {name: recipe_of(mixing.groups, choices) for name, choices in chosen.items()}
    _time(lab, mixing, list(recipes.values()), "one treatment everywhere")
    found = []
    for name, choices in chosen.items():
        point = mixing.points.get(recipes[name])
        if point is not None:
            taken = [g.candidates[place - 1] for g, place in zip(mixing.groups, choices, strict=True) if place]
            harm = sum(alone[candidate.steps].distance for candidate in taken)
            found.append(Anchor(name, harm, point.drop.value, point.seconds))
    return found


def _place(group: Group, treatment: str) -> int:
    return next((index + 1 for index, c in enumerate(group.candidates) if c.treatment == treatment), 0)


def _gains(
    lab: Laboratory, mixing: Mixing, alone: Mapping[Recipe, Judged], base_bytes: int, anchors: Sequence[Anchor]
) -> tuple[dict[tuple[str, str], float], dict[tuple[str, str], float]]:
    """What each (group, treatment) saves, in what the objective counts; and the seconds of the layers alone."""
    pairs = [(group, candidate) for group in mixing.groups for candidate in group.candidates]
    if not lab.setting.objective.timed:
        return {(g.name, c.treatment): float(base_bytes - alone[c.steps].bytes) for g, c in pairs}, {}
    seconds = lab.layer_seconds(mixing.groups)
    raw = {
        (g.name, c.treatment): seconds[g.name, ""] - seconds[g.name, c.treatment]
        for g, c in pairs
        if (g.name, "") in seconds and (g.name, c.treatment) in seconds
    }
    baseline = mixing.points[()].seconds
    return (scaled_gains(raw, anchors, baseline) if baseline else raw), seconds


def _rows(
    groups: Sequence[Group],
    alone: Mapping[Recipe, Judged],
    drop: Drop,
    *,
    gains: Mapping[tuple[str, str], float],
    seconds: Mapping[tuple[str, str], float],
    base_bytes: int,
) -> list[LayerRow]:
    def row(group: Group, candidate: Candidate) -> LayerRow:
        place = (group.name, candidate.treatment)
        found = alone.get(candidate.steps)
        if found is None or found.problem:
            problem = found.problem if found else "no time was left"
            return LayerRow(*place, math.nan, math.nan, None, None, 0, problem)
        return LayerRow(
            *place,
            found.distance,
            drop(found).value,
            seconds.get(place),
            gains.get(place) if seconds else None,
            base_bytes - found.bytes,
        )

    return [row(group, candidate) for group in groups for candidate in group.candidates]


def _try(
    lab: Laboratory,
    mixing: Mixing,
    wanted: Sequence[Sequence[int]],
    drop: Drop,
    what: str,
    *,
    names: Sequence[str] = (),
) -> None:
    """Judges the mixes as wholes."""
    recipes = {recipe_of(mixing.groups, choices): choices for choices in wanted}
    missing = [recipe for recipe in recipes if recipe not in mixing.points]
    found = lab.judged(missing, what)
    labels = dict(zip((recipe_of(mixing.groups, choices) for choices in wanted), names, strict=False))
    for recipe, judged in found.items():
        if judged.problem:
            continue
        mixing.points[recipe] = Point(
            f"{labels[recipe]} everywhere" if recipe in labels else f"mix {len(mixing.points)}",
            recipe,
            treatments_of(mixing.groups, recipes[recipe]),
            drop(judged),
            judged.distance,
            judged.bytes,
        )


def judge_mix(lab: Laboratory, mixing: Mixing, choices: Sequence[int], drop: Drop) -> Point | None:
    """The point of these choices, on calibration data; None where it cannot be judged any more."""
    _try(lab, mixing, [choices], drop, "a repaired mix")
    return mixing.points.get(recipe_of(mixing.groups, choices))


def _time(lab: Laboratory, mixing: Mixing, recipes: Sequence[Recipe], what: str) -> None:
    """Times the recipes beside the uncompressed model; seconds are told in those of its first timing."""
    wanted = [recipe for recipe in recipes if recipe in mixing.points and mixing.points[recipe].seconds is None]
    if not wanted or not lab.setting.objective.timed:
        return
    found = lab.timed([(), *wanted], what)
    now = found.pop((), None)
    if now is None:
        return
    base = mixing.points[()]
    base.seconds = base.seconds or now
    for recipe, seconds in found.items():
        mixing.points[recipe].seconds = seconds * base.seconds / now


def time_points(lab: Laboratory, mixing: Mixing, points: Sequence[Point]) -> None:
    """Compiles and times these points."""
    _time(lab, mixing, [point.recipe for point in points], "what keeps the budget")


def _repair(lab: Laboratory, mixing: Mixing, drop: Drop, allowed: float, slope: float) -> None:
    """Turns mixes that lose too much into milder ones that should not, and judges these; a few times."""
    for _ in range(REPAIRS):
        failing = [point for point in mixing.points.values() if point.recipe and point.drop.high > allowed]
        wanted = [made for point in failing if (made := repair(mixing, point, allowed, slope)) is not None]
        fresh = [made for made in dict.fromkeys(wanted) if recipe_of(mixing.groups, made) not in mixing.points]
        if not fresh:
            return
        _try(lab, mixing, fresh, drop, "repaired mixes")


def repair(mixing: Mixing, point: Point, allowed: float, slope: float) -> tuple[int, ...] | None:
    """Milder choices for a point that lost too much: by its own loss for its harm, where it has lost anything."""
    choices = mixing.choices(point)
    if choices is None:
        return None
    harm = sum(mixing.harms[group][place] for group, place in enumerate(choices))
    worst = point.drop.high if point.held_out is None else max(point.drop.high, point.held_out.high)
    own = max(worst / harm if harm else 0.0, slope)
    if own <= 0:
        return None
    return repaired(choices, mixing.costs, mixing.harms, min(allowed * SAFETY / own, harm * (1 - 1e-9)))
