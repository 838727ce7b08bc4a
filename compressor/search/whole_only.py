"""Treatments that only the whole model can take: those that train, and those that no layer takes by itself.

Each is made as the artifact that it would be, as `shardline compress` makes it: a training is paid for once, and the
recipe gives the same again. They are in no mix.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np

from compressor.compress import problems
from compressor.search.builder import Builder
from compressor.search.finals import artifact_answers, artifact_seconds, disk_bytes
from compressor.search.groups import Group
from compressor.search.laboratory import Judged, Laboratory, Recipe
from compressor.search.mixing import Mixing, Point, times_of
from compressor.search.pace import Shares
from compressor.search.treatments import Treatment, everywhere, trains
from compressor.search.trial import timed_inputs
from compressor.search.verdict import LEAD
from compressor.search.wholes import NO_TIME, no_faster
from worker.errors import DeadlineExceeded, ShardlineError

SHARE: Final = 0.5
"""Of the time that is left for treatments of the whole model: so much trainings may take together."""


def whole_only(treatments: Sequence[Treatment], groups: Sequence[Group]) -> list[Treatment]:
    """Those of the treatments that no group takes."""
    taken = {candidate.treatment for group in groups for candidate in group.candidates}
    return [item for item in treatments if item.name not in taken]


def why_not(builder: Builder, lab: Laboratory, treatment: Treatment) -> str:
    """What keeps the treatment from working on the model; empty where nothing is known to."""
    steps = everywhere(treatment)
    recipe = builder.recipe(steps)
    if recipe is None:
        return ""
    context = replace(recipe.context(lab.model, builder.lessons), target=lab.setting.device)
    return "; ".join(problems(lab.model.module, steps, context))


def try_whole_only(
    lab: Laboratory, mixing: Mixing, builder: Builder, baseline: Path, treatments: Sequence[Treatment]
) -> None:
    """Makes, times and judges each, in the given order, while there is time; `baseline`: the uncompressed artifact.

    Why a treatment has no point is in `mixing.left_out`.
    """
    shares = Shares(SHARE * (times_of(lab).wholes - time.monotonic()), sum(map(trains, treatments)))
    for item in treatments:
        free = times_of(lab).wholes - time.monotonic() - lab.pace.costs.final
        if free < 0:
            mixing.left_out[item.name] = NO_TIME
            continue
        try:
            made = _trained(builder, item, shares, free) if trains(item) else builder.built(everywhere(item))
            problem = _try(lab, mixing, item, made, baseline)
        except DeadlineExceeded:
            problem = "its training takes longer than its share of the time that was left"
        except ShardlineError as error:
            problem = str(error)
        if problem:
            lab.say(f"{item.name} is left out: {problem}")
            mixing.left_out[item.name] = problem


def _trained(builder: Builder, item: Treatment, shares: Shares, most: float) -> Path:
    """The artifact of a treatment that trains, which has its share of the time. Raises as `Builder.built`."""
    began = time.monotonic()
    try:
        return builder.built(everywhere(item), deadline=began + shares.next(most))
    finally:
        shares.took(time.monotonic() - began)


def _try(lab: Laboratory, mixing: Mixing, item: Treatment, made: Path, baseline: Path) -> str:
    """Times the artifact beside the uncompressed one, and where it is faster, or time does not count, judges it.

    Returns:
        Why it has no point; empty where it has one.

    Raises:
        ShardlineError: it cannot be timed or judged.
    """
    base = mixing.points[()]
    seconds = None
    if mixing.timed:
        lab.say(f"timing the artifact of {item.name}")
        inputs = timed_inputs(lab.model, lab.setting.objective.sizes(lab.model))
        taken = lab.alone((artifact_seconds, ([made, baseline], {"objective": inputs})))
        ours, theirs = taken["objective"]
        base.seconds = base.seconds or theirs
        seconds = ours * base.seconds / theirs
        mixing.wholes[item.name] = seconds
        if ours * LEAD >= theirs:
            return no_faster(ours, theirs)
    lab.say(f"asking the calibration data about {item.name}")
    answers = lab.alone((artifact_answers, (made,)))
    recipe: Recipe = everywhere(item)
    drop = mixing.drop(Judged(np.array(answers)))
    smaller = disk_bytes(baseline, program_only=True) - disk_bytes(made, program_only=True)
    mixing.points[recipe] = Point(
        f"{item.name} everywhere", recipe, {}, drop, 0.0, base.bytes - smaller, seconds, whole=item.name
    )
    return ""
