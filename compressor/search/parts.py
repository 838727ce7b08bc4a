"""What each treatment brings to each group of layers, and what it harms, one by one: mixes are made of that."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from compressor.search.fit import scaled_gains
from compressor.search.groups import Candidate, Group
from compressor.search.laboratory import Judged, Laboratory, Recipe
from compressor.search.mixing import LayerRow, Mixing, times_of

Place = tuple[str, str]
"""A group's name, and a treatment's."""


def by_promise(treatments: Sequence[str], wholes: Mapping[str, float]) -> list[str]:
    """Treatments in the order in which they are measured: what made the whole model fastest, first."""
    return sorted(treatments, key=lambda name: wholes.get(name, math.inf))


def measure_parts(lab: Laboratory, mixing: Mixing, treatments: Sequence[str]) -> None:
    """Treatment by treatment, while there is time: what it saves in each group, and then what it harms there.

    A mix has no use for what saves nothing, so it is not judged. Then `mixing.groups` are the groups, with the
    candidates, that are known well enough to be in a mix.
    """
    groups = mixing.groups
    gains: dict[Place, float] = {}
    seconds: dict[Place, float] = {}
    alone: dict[Recipe, Judged] = {}
    for name in by_promise(treatments, mixing.wholes):
        until = times_of(lab).parts
        if time.monotonic() >= until:
            lab.say("no time is left to look at layers one by one")
            break
        taking = [g for g in (_only(group, name) for group in groups) if g.candidates]
        if mixing.timed:
            took = lab.layer_seconds(taking, until)
            seconds |= {place: value for place, value in took.items() if place[1]}
            gains |= _gains(taking, took, mixing, name)
        pairs = [(group, group.candidates[0]) for group in taking]
        wanted = [c.steps for g, c in pairs if not mixing.timed or gains.get((g.name, name), 0.0) > 0]
        alone |= lab.judged(wanted, f"sensitivity to {name}", until)
        if not mixing.timed:
            base = mixing.points[()].bytes
            gains |= {(g.name, name): float(base - alone[c.steps].bytes) for g, c in pairs if c.steps in alone}
    mixing.rows = [
        _row(mixing, (group.name, candidate.treatment), alone.get(candidate.steps), gains, seconds)
        for group in groups
        for candidate in group.candidates
    ]
    mixing.groups = _working(groups, alone, gains)
    mixing.costs = [[0.0, *(-gains[g.name, c.treatment] for c in g.candidates)] for g in mixing.groups]
    mixing.harms = [[0.0, *(alone[c.steps].distance for c in g.candidates)] for g in mixing.groups]


def _only(group: Group, treatment: str) -> Group:
    return replace(group, candidates=tuple(c for c in group.candidates if c.treatment == treatment))


def _gains(groups: Sequence[Group], took: Mapping[Place, float], mixing: Mixing, name: str) -> dict[Place, float]:
    raw = {
        (group.name, name): took[group.name, ""] - took[group.name, name]
        for group in groups
        if (group.name, "") in took and (group.name, name) in took
    }
    baseline = mixing.points[()].seconds
    # What the whole saves is shared out among all its groups, or not at all: time may have ended among them.
    wholes = mixing.wholes if len(raw) == len(groups) else {}
    return scaled_gains(raw, wholes, baseline) if baseline else raw


def _working(
    groups: Sequence[Group], alone: Mapping[Recipe, Judged], gains: Mapping[Place, float]
) -> tuple[Group, ...]:
    """The groups with the candidates that could be done and judged, and save something."""

    def works(group: Group, candidate: Candidate) -> bool:
        found = alone.get(candidate.steps)
        return found is not None and not found.problem and gains.get((group.name, candidate.treatment), 0.0) > 0

    able = [replace(g, candidates=tuple(c for c in g.candidates if works(g, c))) for g in groups]
    return tuple(group for group in able if group.candidates)


def _row(
    mixing: Mixing,
    place: Place,
    found: Judged | None,
    gains: Mapping[Place, float],
    seconds: Mapping[Place, float],
) -> LayerRow:
    gain = gains.get(place) if mixing.timed else None
    if found is None or found.problem:
        saves = gain is None or gain > 0
        problem = found.problem if found else "not measured" if saves else "saves no time"
        return LayerRow(*place, math.nan, math.nan, seconds.get(place), gain, 0, problem)
    saved = mixing.points[()].bytes - found.bytes
    return LayerRow(*place, found.distance, mixing.drop(found).value, seconds.get(place), gain, saved)
