"""Which of the points that kept the budget on calibration data is returned: the held-out data say."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from compressor.bootstrap import Interval
from compressor.search.builder import Builder
from compressor.search.finals import HeldOut, artifact_seconds, shard_run
from compressor.search.laboratory import Laboratory
from compressor.search.mixing import Drop, Mixing, Point, judge_mix, repair, time_points
from compressor.search.trial import timed_inputs
from worker.errors import ShardlineError

MOST_LOOKS: Final = 4
STEADY: Final = 1.03
"""Where size or memory is the objective, so much slower than uncompressed counts as no slower: clocks are not exact."""


@dataclass(slots=True)
class Verdict:
    """What is returned, and why. point: None: the uncompressed model. folder: its artifact."""

    point: Point | None
    folder: Path
    figure: Interval
    drop: Interval
    reason: str


@dataclass(frozen=True, slots=True)
class Bench:
    """What the last word needs. baseline: the uncompressed artifact, and `base` its figure on the held-out data."""

    lab: Laboratory
    builder: Builder
    held_out: HeldOut
    baseline: Path
    base: Interval
    allowed: float
    until: float


def choose(bench: Bench, mixing: Mixing, drop: Drop, say: Callable[[str], None]) -> Verdict:
    """Asks the held-out data about the best point, then about what follows, until one keeps the budget.

    A point that fails is repaired, and the milder mix takes its place in the row. A point that passes is returned only
    if its artifact is really faster than the uncompressed one.
    """
    waiting = worthy(mixing, bench)
    if not waiting:
        return _baseline(bench, _why_none(mixing, bench.allowed))
    costs: list[float] = []
    while waiting and bench.held_out.looks < MOST_LOOKS:
        left = bench.until - time.monotonic()
        if costs and left < max(costs):
            return _baseline(bench, "the time limit ended before any mix was proven on held-out data")
        began = time.monotonic()
        point = waiting.pop(0)
        verdict = _asked(bench, point, say)
        costs.append(time.monotonic() - began)
        if verdict is not None:
            return verdict
        if point.held_out is not None:
            waiting = _with_repaired(bench, mixing, point, waiting, drop)
    tried = "; ".join(f"{point.name}: {point.verdict}" for point in mixing.points.values() if point.verdict)
    return _baseline(bench, f"no mix that keeps the budget was faster and proven on held-out data ({tried})")


def worthy(mixing: Mixing, bench: Bench) -> list[Point]:
    """Points that keep the budget on calibration data and beat the uncompressed model, the best first."""
    base = mixing.points.get(())
    if base is None:
        return []
    timed = bench.lab.setting.objective.timed
    found = []
    for point in mixing.points.values():
        if not point.recipe or point.drop.high > bench.allowed or point.verdict:
            continue
        if timed and (point.seconds is None or base.seconds is None or point.seconds >= base.seconds):
            continue
        if not timed and point.bytes >= base.bytes:
            continue
        found.append(point)
    return sorted(found, key=lambda point: ((point.seconds or 0.0) if timed else float(point.bytes), point.name))


def _asked(bench: Bench, point: Point, say: Callable[[str], None]) -> Verdict | None:
    try:
        folder = bench.builder.built(point.recipe)
    except ShardlineError as error:
        point.verdict = f"cannot be packaged: {error}"
        return None
    say(f"timing the artifact of {point.name}")
    sizes = bench.lab.setting.objective.sizes(bench.lab.model)
    inputs = timed_inputs(bench.lab.model, sizes)
    ours, theirs = bench.lab.alone((artifact_seconds, ([folder, bench.baseline], {"objective": inputs})))["objective"]
    limit = theirs if bench.lab.setting.objective.timed else theirs * STEADY
    if ours >= limit:
        point.verdict = f"its artifact takes {ours * 1e3:.3g} ms, and the uncompressed one {theirs * 1e3:.3g} ms"
        return None
    say(f"asking the held-out data about {point.name}")
    figure, drop = bench.held_out.look(shard_run(folder, bench.lab.setting))
    point.held_out = drop
    if drop.high > bench.allowed:
        point.verdict = f"may lose {drop.high:.3g} on held-out data, over {bench.allowed:.3g}"
        return None
    point.verdict = "returned"
    reason = f"{point.name}: at most {drop.high:.3g} lost on held-out data, {theirs / ours:.2f}x as fast"
    return Verdict(point, folder, figure, drop, reason)


def _with_repaired(bench: Bench, mixing: Mixing, point: Point, waiting: list[Point], drop: Drop) -> list[Point]:
    """The row with a milder mix than `point` in it, where there is one that is judged and timed in time."""
    choices = repair(mixing, point, bench.allowed, 0.0)
    if choices is not None:
        made = judge_mix(bench.lab, mixing, choices, drop)
        if made is not None:
            time_points(bench.lab, mixing, [made])
    return [other for other in worthy(mixing, bench) if other.held_out is None]


def _why_none(mixing: Mixing, allowed: float) -> str:
    points = [point for point in mixing.points.values() if point.recipe]
    if not points:
        return "no mix could be judged within the time limit"
    nearest = min(points, key=lambda point: point.drop.high)
    if nearest.drop.high > allowed:
        return (
            f"nothing keeps the budget: the most careful mix ({nearest.name}) may lose {nearest.drop.high:.3g} on "
            f"calibration data, and {allowed:.3g} is allowed"
        )
    return "what keeps the budget is not faster than the uncompressed model, or could not be timed in time"


def _baseline(bench: Bench, reason: str) -> Verdict:
    nothing = Interval(0.0, 0.0, 0.0, bench.base.level)
    return Verdict(None, bench.baseline, bench.base, nothing, reason)
