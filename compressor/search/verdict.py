"""Which of the points that kept the budget on calibration data is returned: the held-out data say."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import torch

from compressor.evaluation.bootstrap import Interval
from compressor.search.builder import Builder
from compressor.search.finals import HeldOut, artifact_bytes, artifact_seconds, shard_run
from compressor.search.laboratory import Laboratory
from compressor.search.mixing import Mixing, Point, judge_mix, repair, time_points
from compressor.search.pace import MARGIN
from compressor.search.trial import timed_inputs
from compressor.search.wholes import NO_TIME
from worker.errors import ShardlineError

MOST_LOOKS: Final = 4
LEAD: Final = 1.02
"""So many times as fast as one treatment of the whole model, or more, a mix must be: clocks are not exact."""
SURE: Final = 0.5
"""Of the budget. What lost no more on calibration data is likely to be proven on held-out data."""
STEADY: Final = 1.02
"""Where size or memory is the objective, so much slower than uncompressed counts as no slower: clocks are not exact."""
STEADY_ROWS: Final = (1, 32)
"""Where size or memory is the objective, batches of so many rows are timed: none may be slower."""


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


def choose(bench: Bench, mixing: Mixing, say: Callable[[str], None]) -> Verdict:
    """Asks the held-out data about the best point, then about what follows, until one keeps the budget.

    A point that fails is repaired, and the milder mix takes its place in the row. A point that passes is returned only
    if its artifact is really faster than the uncompressed one; where size or memory is the objective, if it is really
    smaller and no slower. The first is asked whatever the time: its share of the limit was kept free.
    """
    pace = bench.lab.pace
    waiting = worthy(mixing)
    if not waiting:
        return _baseline(bench, why_none(mixing))
    costs: list[float] = []
    while (
        waiting
        and bench.held_out.looks < MOST_LOOKS
        and bench.held_out.provable(bench.held_out.looks + 1, mixing.allowed)
    ):
        one = max([pace.costs.final, *costs])
        if costs and pace.limit - time.monotonic() < one:
            return _baseline(
                bench, f"the time limit ended before anything was proven on held-out data ({_tried(mixing)})"
            )
        if not mixing.timed:
            waiting = _weighed(bench, mixing, waiting[: MOST_LOOKS - bench.held_out.looks], pace.limit - 2 * one, say)
            if not waiting:
                break
        began = time.monotonic()
        looks = bench.held_out.looks
        more = looks + 1 < MOST_LOOKS and bench.held_out.provable(looks + 2, mixing.allowed)
        last = pace.limit - began < 2 * one or not more
        point = next_asked(waiting, mixing.allowed, last=last)
        verdict = _asked(bench, point, say)
        costs.append(time.monotonic() - began)
        if verdict is not None:
            return verdict
        if point.held_out is not None:
            _repair(bench, mixing, point)
        waiting = worthy(mixing)
    better = "faster" if mixing.timed else "smaller, no slower"
    return _baseline(
        bench, f"nothing that keeps the budget was {better} and proven on held-out data ({_tried(mixing)})"
    )


def worthy(mixing: Mixing) -> list[Point]:
    """Points that keep the budget on calibration data, beat the uncompressed model and were not asked yet, the best
    first. A mix comes before one treatment of the whole model only if it is clearly faster. Where size or memory is the
    objective, those whose artifacts were measured come first, by what they take; others by the bytes of their weights.
    """

    def rank(point: Point) -> tuple[bool, float, str]:
        if point.share is not None:
            return False, point.share, point.name
        return True, (mixing.cost(point) or 0.0) * (LEAD if mixing.timed and not point.whole else 1.0), point.name

    found = [point for point in mixing.points.values() if point.recipe and not point.verdict and mixing.pays(point)]
    return sorted(found, key=rank)


def next_asked(waiting: Sequence[Point], allowed: float, *, last: bool) -> Point:
    """Of points with the best first: the best; and where no other can be asked after it, the best of those that are
    likely to be proven, or else the likeliest.
    """
    if not last:
        return waiting[0]
    sure = [point for point in waiting if point.drop.high <= SURE * allowed]
    return sure[0] if sure else min(waiting, key=lambda point: point.drop.high)


def _weighed(
    bench: Bench, mixing: Mixing, waiting: Sequence[Point], until: float, say: Callable[[str], None]
) -> list[Point]:
    """The worthy points after those that wait were built and measured: the first whatever the time, others `until`."""
    for place, point in enumerate(point for point in waiting if point.share is None):
        if place and time.monotonic() >= until:
            break
        folder = _built(bench, point)
        if folder is not None:
            _is_smaller(bench, point, folder, say)
    return worthy(mixing)


def _built(bench: Bench, point: Point) -> Path | None:
    """The point's artifact; None, with a verdict, where it cannot be made."""
    try:
        with bench.lab.pace.clocked("package"):
            return bench.builder.built(point.recipe)
    except ShardlineError as error:
        point.verdict = f"cannot be packaged: {error}"
        return None


def _is_smaller(bench: Bench, point: Point, folder: Path, say: Callable[[str], None]) -> bool:
    """Whether the artifact takes less than the uncompressed, on disk or of memory: measured once; else a verdict."""
    if point.share is None:
        say(f"measuring the artifact of {point.name}")
        try:
            ours, theirs = bench.lab.alone((artifact_bytes, ([folder, bench.baseline],)))
        except ShardlineError as error:
            point.verdict = f"cannot be measured: {error}"
            return False
        point.share = ours / theirs
        if ours >= theirs:
            where = _where(bench)
            point.verdict = (
                f"its artifact takes {ours / 1e6:.4g} MB {where}, and the uncompressed one {theirs / 1e6:.4g} MB"
            )
    return point.share < 1


def _where(bench: Bench) -> str:
    return "on disk" if bench.lab.setting.objective.kind == "size" else "of memory"


def _asked(bench: Bench, point: Point, say: Callable[[str], None]) -> Verdict | None:
    timed = bench.lab.setting.objective.timed
    folder = _built(bench, point)
    if folder is None or not (timed or _is_smaller(bench, point, folder, say)):
        return None
    say(f"timing the artifact of {point.name}")
    try:
        found = bench.lab.alone((artifact_seconds, ([folder, bench.baseline], _batches(bench))))
    except ShardlineError as error:
        point.verdict = f"its artifact cannot be timed: {error}"
        return None
    slower = slower_batch(found, 1 / LEAD if timed else STEADY)
    if slower is not None:
        ours, theirs = found[slower]
        point.verdict = (
            f"its artifact takes {ours * 1e3:.3g} ms at {slower}, and the uncompressed one {theirs * 1e3:.3g} ms"
        )
        return None
    say(f"asking the held-out data about {point.name}")
    try:
        figure, drop = bench.held_out.look(shard_run(folder, bench.lab.setting))
    except ShardlineError as error:
        point.verdict = f"cannot be judged on held-out data: {error}"
        return None
    point.held_out = drop
    if drop.high > bench.allowed:
        point.verdict = f"may lose {drop.high:.3g} on held-out data, over {bench.allowed:.3g}"
        return None
    point.verdict = "returned"
    saved = "" if timed else f"{point.share:.3g} of the uncompressed artifact's bytes {_where(bench)}, "
    fast = " and ".join(f"{theirs / ours:.2f}x as fast at {label}" for label, (ours, theirs) in found.items())
    objective = bench.lab.setting.objective
    if objective.kind == "throughput":
        ((ours, _),) = found.values()
        fast += f", {objective.rows / ours:.4g} rows/s on one thread"
    reason = f"{point.name}: at most {drop.high:.3g} lost on held-out data, {saved}{fast}"
    return Verdict(point, folder, figure, drop, reason)


def _batches(bench: Bench) -> dict[str, tuple[torch.Tensor, ...]]:
    """What the last word is timed at: the objective's batch; where that has none, a small and a large one."""
    objective, model = bench.lab.setting.objective, bench.lab.model
    found = {}
    for rows in (objective.rows,) if objective.timed else STEADY_ROWS:
        sizes = replace(objective, rows=rows).sizes(model)
        found["x".join(map(str, sizes.values())) or "its fixed sizes"] = timed_inputs(model, sizes)
    return found


def slower_batch(seconds: Mapping[str, Sequence[float]], most: float) -> str | None:
    """The first batch at which the first artifact takes `most` times as long as the second, or longer."""
    return next((label for label, (ours, theirs) in seconds.items() if ours >= theirs * most), None)


def _repair(bench: Bench, mixing: Mixing, point: Point) -> None:
    """Judges and times a milder mix than `point`, where there is one, and time for it and to prove it."""
    pace = bench.lab.pace
    until = pace.limit - MARGIN * pace.costs.final
    choices = repair(mixing, point, 0.0)
    if choices is not None and time.monotonic() + pace.costs.whole <= until:
        made = judge_mix(bench.lab, mixing, choices, until)
        if made is not None:
            time_points(bench.lab, mixing, [made], until)


def _tried(mixing: Mixing) -> str:
    return "; ".join(f"{point.name}: {point.verdict}" for point in mixing.points.values() if point.verdict)


def why_none(mixing: Mixing) -> str:
    """Why no point is worth to be proven."""
    points = [point for point in mixing.points.values() if point.recipe]
    left_out = "; ".join(f"{name} everywhere: {why}" for name, why in mixing.left_out.items())
    told = f" ({left_out})" if left_out else ""
    if not points and all(why == NO_TIME for why in mixing.left_out.values()):
        return (
            "the time limit ended before even one treatment of the whole model was built and judged; from there on, "
            f"that takes about {mixing.needed_s:.0f} s"
        )
    if not points:
        return f"nothing that was tried makes the model {'faster' if mixing.timed else 'smaller'}{told}"
    nearest = min(points, key=lambda point: point.drop.high)
    if nearest.drop.high > mixing.allowed:
        return (
            f"nothing keeps the budget: the most careful mix ({nearest.name}) may lose {nearest.drop.high:.3g} on "
            f"calibration data, and {mixing.allowed:.3g} is allowed{told}"
        )
    return f"what keeps the budget is not faster than the uncompressed model, or could not be timed in time{told}"


def _baseline(bench: Bench, reason: str) -> Verdict:
    nothing = Interval(0.0, 0.0, 0.0, bench.base.level)
    return Verdict(None, bench.baseline, bench.base, nothing, reason)
