"""From profiles, nodes and an objective to a plan: a pure function.

For each mix of devices, threads and batch limit the best cuts are found by dynamic programming (`cuts`, as AlpaServe
and PipeDream do); stages get replicas greedily, the slowest first, and replicas get nodes (`replicas`, `packing`); the
best few of these plans are served in a simulator that batches and routes as the real system does, and the best of them
wins.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

from cluster.planning.balance import balanced, refined
from cluster.planning.bound import most_rounds
from cluster.planning.deployment import Demand, Plan, summary
from cluster.planning.judge import Judge, Objective, Tried
from cluster.planning.limit import limit
from cluster.planning.machines import Node
from cluster.planning.replicas import NoRoom
from cluster.planning.road import Road
from cluster.planning.shapes import Limits, Shape, shapes
from cluster.planning.simulator import Setting, road_for
from cluster.planning.why import why_no_shape, why_nothing
from worker.errors import InvalidRequest

FEW: Final = 4
"""Up to so many models, other shapes than the balanced ones are tried for each of them."""
MANY: Final = 16
"""With more models than this, only the balanced choice is simulated."""
TRIED: Final = 16
"""Plans that are simulated."""


class NothingFits(InvalidRequest):
    """No plan keeps what was asked. The message says what is missing, and how near the best came."""


def plan(
    demands: Sequence[Demand],
    nodes: Sequence[Node],
    objective: Objective,
    *,
    limits: Limits | None = None,
    setting: Setting | None = None,
) -> Plan:
    """The best plan that was found.

    Args:
        setting: how plans are simulated; its `nodes` are replaced.

    Raises:
        NothingFits: no plan holds, and why.
        InvalidRequest: no model, no node, or a rate that is not positive.
    """
    _check(demands, nodes)
    limits = limits or Limits()
    setting = setting or Setting(nodes)
    road = setting.road or road_for(demands, nodes)
    judge = Judge(demands, nodes, objective, replace(setting, nodes=tuple(nodes), road=road))
    found = {demand.model: _ranked(demand, nodes, limits, road) for demand in demands}
    for demand in demands:
        if not found[demand.model]:
            raise NothingFits(why_no_shape(demand, nodes, limits, road))
    bound = most_rounds(demands, nodes, limits.max_rows)
    tried: list[Tried] = []
    reasons: list[str] = []
    for chosen in _combinations(demands, [found[demand.model] for demand in demands], nodes):
        if len(tried) >= TRIED:
            break
        try:
            tried.append(judge.judge(chosen))
        except NoRoom as error:
            reasons.append(str(error))
    holding = [one for one in tried if one.holds]
    if not holding:
        raise NothingFits(why_nothing(demands, nodes, tried, reasons))
    ordered = sorted(holding, key=lambda one: one.score)
    best = ordered[0]
    rates = sum(demand.rate for demand in demands)
    return Plan(
        models=best.plans,
        predictions=best.predictions,
        achieved=sum(prediction.rate for prediction in best.predictions),
        bound=bound * rates,
        limit=limit(judge, best, tried),
        runner_up=_runner_up(best, ordered[1:], objective),
        considered=sum(len(shapes_of) for shapes_of in found.values()),
        nodes=tuple(nodes),
    )


def _check(demands: Sequence[Demand], nodes: Sequence[Node]) -> None:
    if not demands:
        raise InvalidRequest("no model is to be planned for")
    if not nodes:
        raise InvalidRequest("there is no node to plan for")
    for demand in demands:
        if not (demand.rate > 0 and math.isfinite(demand.rate)):
            raise InvalidRequest(f"{demand.model}: rate: expected requests a second above 0, got {demand.rate}")
        if demand.p99_s is not None and not demand.p99_s > 0:
            raise InvalidRequest(f"{demand.model}: p99: expected a time above 0, got {demand.p99_s}")


def _ranked(demand: Demand, nodes: Sequence[Node], limits: Limits, road: Road) -> list[Shape]:
    """Shapes that can keep the latency, those with the fewest core-seconds first; few stages among near-equals."""
    usable = [
        shape for shape in shapes(demand, nodes, limits, road) if demand.p99_s is None or shape.alone_s <= demand.p99_s
    ]
    return sorted(usable, key=lambda shape: (round(math.log(shape.core_seconds) * 20), len(shape.stages)))


def _combinations(
    demands: Sequence[Demand], ranked: Sequence[Sequence[Shape]], nodes: Sequence[Node]
) -> Iterator[list[Shape]]:
    """One shape for each model. Of one model: the best of each kind first. Of several: one varies at a time."""
    if len(ranked) == 1:
        yield from ([shape] for shape in _varied(ranked[0]))
        return
    first = refined(demands, ranked, nodes, balanced(demands, ranked, nodes))
    yield first
    if len(ranked) > MANY:
        return
    for share in (0.5, 0.25):
        shared = [_with_share(shapes_of, share) or shapes_of[0] for shapes_of in ranked]
        if shared != first:
            yield shared
    if len(ranked) > FEW:
        return
    for place, shapes_of in enumerate(ranked):
        for shape in list(_varied(shapes_of))[1:6]:
            yield [*first[:place], shape, *first[place + 1 :]]


def _with_share(ranked: Sequence[Shape], share: float) -> Shape | None:
    return next((shape for shape in ranked if all(stage.cpus == share for stage in shape.stages)), None)


def _varied(ranked: Sequence[Shape]) -> list[Shape]:
    """The same, but of shapes that differ in batch size alone the later ones come last."""
    seen: set[tuple[object, ...]] = set()
    early: list[Shape] = []
    late: list[Shape] = []
    for shape in ranked:
        kind = tuple((stage.device, stage.threads, stage.cpus) for stage in shape.stages)
        (late if kind in seen else early).append(shape)
        seen.add(kind)
    return early + late


def _runner_up(best: Tried, others: Sequence[Tried], objective: Objective) -> str:
    for other in others:
        if [summary(one) for one in other.plans] != [summary(one) for one in best.plans]:
            rate = sum(prediction.rate for prediction in other.predictions)
            late = max(prediction.p99_s for prediction in other.predictions)
            cpus = sum(one.cpus for one in other.plans)
            what = "; ".join(summary(one) for one in other.plans[:3])
            return f"{what}: {rate:.1f} requests/s, p99 {1e3 * late:.0f} ms, {cpus:g} CPUs"
    return ""
