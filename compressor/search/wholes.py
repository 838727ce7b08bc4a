"""The whole model in one treatment, each treatment in its turn: an answer early, and what mixes of them must beat."""

import time
from collections.abc import Sequence
from typing import Final

from compressor.search.laboratory import Laboratory, Recipe
from compressor.search.mixing import (
    Mixing,
    judge_recipes,
    place_of,
    recipe_of,
    seconds_beside,
    times_of,
    treatments_of,
)
from compressor.search.pace import next_wholes

WHAT: Final = "one treatment everywhere"
NO_TIME: Final = "no time was left"


def try_wholes(lab: Laboratory, mixing: Mixing, treatments: Sequence[str]) -> None:
    """Builds, times and judges each treatment on every group that takes it, in the given order, while there is time.

    What makes the whole model no faster is not judged, where time is the objective. Why a treatment has no point is in
    `mixing.left_out`.
    """
    taken = {candidate.treatment for group in mixing.groups for candidate in group.candidates}
    waiting = [name for name in treatments if name in taken]
    first = True
    while waiting:
        until = times_of(lab).wholes
        costs, width = lab.pace.costs, lab.pace.width
        count = next_wholes(len(waiting), until - time.monotonic(), costs.whole, width, first=first)
        if not count:
            break
        _try(lab, mixing, waiting[:count], until)
        waiting, first = waiting[count:], False
    mixing.left_out |= dict.fromkeys(waiting, NO_TIME)


def _try(lab: Laboratory, mixing: Mixing, names: Sequence[str], until: float) -> None:
    places = {name: [place_of(group, name) for group in mixing.groups] for name in names}
    recipes = {name: recipe_of(mixing.groups, places[name]) for name in names}
    worth = list(names)
    if mixing.timed:
        worth = _faster(lab, mixing, recipes, until)
    wanted = {recipes[name]: (f"{name} everywhere", treatments_of(mixing.groups, places[name])) for name in worth}
    problems = judge_recipes(lab, mixing, wanted, WHAT, until)
    for name in worth:
        point = mixing.points.get(recipes[name])
        if point is None:
            mixing.left_out[name] = problems.get(recipes[name], NO_TIME)
        else:
            point.whole = name
            point.seconds = mixing.wholes.get(name)


def _faster(lab: Laboratory, mixing: Mixing, recipes: dict[str, Recipe], until: float) -> list[str]:
    """Those that make the model faster; of the others it is told why not."""
    found, problems = seconds_beside(lab, mixing, list(recipes.values()), WHAT, until)
    base = mixing.points[()].seconds
    faster = []
    for name, recipe in recipes.items():
        seconds = found.get(recipe)
        if seconds is None or base is None:
            mixing.left_out[name] = problems.get(recipe, NO_TIME)
            continue
        mixing.wholes[name] = seconds
        if seconds < base:
            faster.append(name)
        else:
            mixing.left_out[name] = no_faster(seconds, base)
    return faster


def no_faster(seconds: float, base: float) -> str:
    """Why a treatment of the whole model is left out that takes `seconds`, where nothing done takes `base`."""
    return f"it takes {seconds * 1e3:.3g} ms for the whole model, and {base * 1e3:.3g} ms uncompressed"
