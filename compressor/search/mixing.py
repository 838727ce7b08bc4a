"""Chooses a treatment for each group: from what was measured of groups to recipes that keep the budget on calibration
data, and beat the best treatment of the whole model.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from compressor.evaluation.bootstrap import Interval
from compressor.search.fit import Anchor, drop_for_harm, harm_budget, repaired
from compressor.search.groups import Group
from compressor.search.laboratory import Judged, Laboratory, Recipe
from compressor.search.mixes import Option, best_within, spread, undominated_mixes
from compressor.search.pace import Times
from compressor.search.treatments import merged

MOST_GROUPS: Final = 48
"""Beyond it, layers of a block are decided together."""

CALIBRATION_LEVEL: Final = 0.8
"""Of the interval by which a mix is judged on calibration data; the held-out data are asked at the usual level."""

SPREAD: Final = 4
REPAIRS: Final = 3
BUDGET_SHARES: Final = (1.0, 0.5, 2.0)
SAFETY: Final = 0.9
"""A repaired mix aims at this share of the budget."""
FINALISTS: Final = 3
MIXES: Final = len(BUDGET_SHARES) + SPREAD
"""So many are judged before any is repaired."""

Drop = Callable[[Judged], Interval]


@dataclass(slots=True)
class Point:
    """One recipe and all that was found out about it. The search fills it in as it goes on.

    drop: on calibration data. seconds: at the objective's sizes, compiled; None where it was not timed.
    bytes: of its weights as they are stored. share: of the uncompressed artifact's bytes on disk or in memory, as the
        objective is, that its artifact was measured to take; None where it was not.
    whole: the treatment that all groups have which take it; empty: it is a mix.
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
    whole: str = ""
    share: float | None = None


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
    """What is looked for, and what came of it.

    groups: at first with all candidates, then with those that mixes are made of.
    drop: of a judged recipe, from the uncompressed model, on calibration data. allowed: the most.
    points: the baseline first.
    wholes: seconds of the model in one treatment. left_out: why a treatment of the whole model has no point.
    needed_s: what one takes, from being built to the last word. named: how many mixes have a name.
    """

    groups: tuple[Group, ...]
    drop: Drop
    allowed: float
    timed: bool
    rows: list[LayerRow] = field(default_factory=list)
    points: dict[Recipe, Point] = field(default_factory=dict)
    wholes: dict[str, float] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    needed_s: float = 0.0
    named: int = 0
    costs: list[list[float]] = field(default_factory=list)
    harms: list[list[float]] = field(default_factory=list)

    def choices(self, point: Point) -> tuple[int, ...]:
        """The place of each group's treatment in the point; 0 where mixes do not have it."""
        return tuple(place_of(group, point.treatments.get(group.name, "")) for group in self.groups)

    def cost(self, point: Point) -> float | None:
        """Seconds or bytes, as the objective is; None where they were not measured."""
        return point.seconds if self.timed else float(point.bytes)

    def saved(self, point: Point) -> float:
        """What the point costs less than the uncompressed model; 0 where it was not measured."""
        cost, base = self.cost(point), self.cost(self.points[()])
        return base - cost if cost is not None and base is not None else 0.0

    def pays(self, point: Point) -> bool:
        """Whether the point keeps the budget on calibration data and costs less than the uncompressed model."""
        return point.drop.high <= self.allowed and self.saved(point) > 0

    def expected(self, choices: Sequence[int]) -> float:
        """What a mix should cost, by its parts."""
        base = self.cost(self.points[()]) or 0.0
        return base + sum(self.costs[group][place] for group, place in enumerate(choices))

    def best_whole(self, *, of_layers: bool = False) -> Point | None:
        """The treatment of the whole model that keeps the budget on calibration data and saves the most.

        of_layers: among those that layers can take one by one.
        """
        wholes = [point for point in self.points.values() if point.whole and (point.treatments or not of_layers)]
        return max((point for point in wholes if self.pays(point)), key=self.saved, default=None)

    def promises(self, choices: Sequence[int]) -> bool:
        """Whether a mix should cost less than the best treatment of the whole model, where one keeps the budget."""
        best = self.best_whole()
        cost = self.cost(best) if best else None
        return cost is None or self.expected(choices) < cost


def times_of(lab: Laboratory) -> Times:
    """When which phase ends, by what is known now of how long work takes."""
    return lab.pace.times(mixes=MIXES, finalists=FINALISTS)


def recipe_of(groups: Sequence[Group], choices: Sequence[int]) -> Recipe:
    """The steps of each group's choice, as one recipe. 0 is to leave a group as it is."""
    chosen = [group.candidates[place - 1] for group, place in zip(groups, choices, strict=True) if place]
    return merged([step for candidate in chosen for step in candidate.steps])


def treatments_of(groups: Sequence[Group], choices: Sequence[int]) -> dict[str, str]:
    return {
        group.name: group.candidates[place - 1].treatment if place else ""
        for group, place in zip(groups, choices, strict=True)
    }


def place_of(group: Group, treatment: str) -> int:
    """The treatment's place among a group's choices; 0, which is nothing, where the group does not take it."""
    return next((index + 1 for index, c in enumerate(group.candidates) if c.treatment == treatment), 0)


def judge_recipes(
    lab: Laboratory,
    mixing: Mixing,
    wanted: Mapping[Recipe, tuple[str, Mapping[str, str]]],
    what: str,
    until: float,
) -> dict[Recipe, str]:
    """Makes points of the recipes (each with a name and its groups' treatments) that can be judged in time.

    Returns:
        Why one cannot be judged at all.
    """
    missing = [recipe for recipe in wanted if recipe not in mixing.points]
    found = lab.judged(missing, what, until)
    for recipe, judged in found.items():
        if not judged.problem:
            name, treatments = wanted[recipe]
            mixing.points[recipe] = Point(name, recipe, treatments, mixing.drop(judged), judged.distance, judged.bytes)
    return {recipe: judged.problem for recipe, judged in found.items() if judged.problem}


def seconds_beside(
    lab: Laboratory, mixing: Mixing, recipes: Sequence[Recipe], what: str, until: float, *, beside: Recipe = ()
) -> tuple[dict[Recipe, float], dict[Recipe, str]]:
    """Times the recipes in turns with another one; and tells why one cannot be.

    Seconds are told in those that the point `beside` was first found to take: clocks of one minute are not another's.
    """
    found, problems = lab.timed([beside, *recipes], what, until)
    now = found.pop(beside, None)
    if now is None:
        return {}, problems
    base = mixing.points[beside]
    base.seconds = base.seconds or now
    return {recipe: seconds * base.seconds / now for recipe, seconds in found.items()}, problems


def try_mixes(lab: Laboratory, mixing: Mixing) -> None:
    """Solves for the best mixes, judges those as wholes that promise to beat one treatment everywhere, and repairs."""
    options = [
        [Option(cost, harm) for cost, harm in zip(costs, harms, strict=True)]
        for costs, harms in zip(mixing.costs, mixing.harms, strict=True)
    ]
    if not options:
        return
    anchors = anchors_of(mixing)
    front = undominated_mixes(options)
    budget = harm_budget(anchors, mixing.allowed)
    fitting = [best_within(front, budget * share) for share in BUDGET_SHARES]
    wanted = [*(mix.choices for mix in fitting if mix), *(mix.choices for mix in spread(front, SPREAD))]
    until = times_of(lab).judged
    _judge(lab, mixing, [made for made in wanted if mixing.promises(made)], "mixes", until)
    slope = drop_for_harm(anchors)
    for _ in range(REPAIRS):
        failing = [point for point in mixing.points.values() if point.recipe and point.drop.high > mixing.allowed]
        milder = [made for point in failing if (made := repair(mixing, point, slope)) is not None]
        fresh = [
            made
            for made in dict.fromkeys(milder)
            if recipe_of(mixing.groups, made) not in mixing.points and mixing.promises(made)
        ]
        if not fresh:
            return
        _judge(lab, mixing, fresh, "repaired mixes", times_of(lab).judged)


def anchors_of(mixing: Mixing) -> list[Anchor]:
    """What treatments of the whole model lost, for the harm of their parts; for their own, where parts are unknown."""
    known = {(row.group, row.treatment): row.distance for row in mixing.rows if not row.problem}
    found = []
    for point in mixing.points.values():
        if point.whole and point.treatments:  # what only the whole model takes has no parts
            parts = [known.get((group, name)) for group, name in point.treatments.items() if name]
            measured = [harm for harm in parts if harm is not None]
            harm = sum(measured) if len(measured) == len(parts) else point.distance
            found.append(Anchor(point.whole, harm, point.drop.value))
    return found


def _judge(lab: Laboratory, mixing: Mixing, wanted: Sequence[Sequence[int]], what: str, until: float) -> None:
    recipes = {recipe_of(mixing.groups, choices): choices for choices in wanted}
    fresh = [recipe for recipe in recipes if recipe not in mixing.points]
    named = {
        recipe: (f"mix {mixing.named + place}", treatments_of(mixing.groups, recipes[recipe]))
        for place, recipe in enumerate(fresh, 1)
    }
    mixing.named += len(named)
    judge_recipes(lab, mixing, named, what, until)


def judge_mix(lab: Laboratory, mixing: Mixing, choices: Sequence[int], until: float) -> Point | None:
    """The point of these choices, on calibration data; None where it cannot be judged any more."""
    _judge(lab, mixing, [choices], "a repaired mix", until)
    return mixing.points.get(recipe_of(mixing.groups, choices))


def time_points(lab: Laboratory, mixing: Mixing, points: Sequence[Point], until: float, *, beside: Recipe = ()) -> None:
    """Compiles those that were not timed yet, and times them in turns with `beside`."""
    wanted = [point.recipe for point in points if point.seconds is None]
    if wanted and mixing.timed:
        found, _ = seconds_beside(lab, mixing, wanted, "what keeps the budget", until, beside=beside)
        for recipe, seconds in found.items():
            mixing.points[recipe].seconds = seconds


def time_finalists(lab: Laboratory, mixing: Mixing) -> None:
    """Times the mixes that keep the budget on calibration data and promise the most, beside what they must beat."""
    fitting = [
        (mixing.expected(mixing.choices(point)), point)
        for point in mixing.points.values()
        if point.recipe and not point.whole and point.drop.high <= mixing.allowed
    ]
    best = mixing.best_whole(of_layers=True)
    finalists = [point for _, point in sorted(fitting, key=lambda pair: pair[0])[:FINALISTS]]
    time_points(lab, mixing, finalists, times_of(lab).mixes, beside=best.recipe if best else ())


def repair(mixing: Mixing, point: Point, slope: float) -> tuple[int, ...] | None:
    """Milder choices for a point that lost too much: by its own loss for its harm, where it has lost anything."""
    choices = mixing.choices(point)
    harm = sum(mixing.harms[group][place] for group, place in enumerate(choices))
    worst = point.drop.high if point.held_out is None else max(point.drop.high, point.held_out.high)
    own = max(worst / harm if harm else 0.0, slope)
    if own <= 0:
        return None
    return repaired(choices, mixing.costs, mixing.harms, min(mixing.allowed * SAFETY / own, harm * (1 - 1e-9)))
