"""What keeps a plan from more: the latency asked for, the gateways, a network, or the nodes' room. Pure.

The simulation tells how much of the time stages compute and how late answers are. What the gateways' processes and the
nodes' networks take is reckoned from the rates, also where a large plan is simulated a slice at a time.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from cluster.planning.deployment import Demand, ModelPlan, Prediction
from cluster.planning.judge import Judge, Objective, Tried, alone_s
from cluster.planning.machines import Node
from cluster.planning.packing import Need, Room
from cluster.planning.road import DEFAULT_ROAD, Road
from cluster.planning.shapes import need

FULL: Final = 0.9
"""Share of a process, a stage or a network from which on there is nothing more to be had of it: queues grow fast."""
WORTH_TELLING: Final = 1.05
"""So many times as much must be possible for a latency, or a model, to be what limits: chance gives smaller ones."""


@dataclass(frozen=True, slots=True)
class Share:
    """used: of what there is, at the predicted rates. growth: how many times those rates it bears."""

    used: float
    growth: float
    told: str


def limit(judge: Judge, best: Tried, tried: Sequence[Tried]) -> str:
    """What keeps the plan `best`, chosen among `tried`, from more, in a line."""
    demands, nodes, setting = judge.demands, judge.nodes, judge.setting
    named = {node.name: node for node in nodes}
    rates = [prediction.rate for prediction in best.predictions]
    hosts = [named[name] if name else None for name in setting.gateways]
    ways = [_gateways(demands, rates, setting.road or DEFAULT_ROAD, hosts)]
    ways += _networks(demands, best.plans, rates, named, setting.gateways)
    if judge.objective.goal == "max_throughput":
        return _late(best, tried, demands) or _most(best, demands, nodes, judge.objective, ways)
    return _grows(best, demands, nodes, ways)


def _late(best: Tried, tried: Sequence[Tried], demands: Sequence[Demand]) -> str:
    """The latency that was asked for, where more would be served without it."""
    asking = [place for place, demand in enumerate(demands) if demand.p99_s is not None]
    others = [one for one in tried if one.full]
    if not asking or not others:
        return ""
    free = max(others, key=lambda one: min(_rounds(one.full, demands)))
    if min(_rounds(free.full, demands)) < WORTH_TELLING * min(_rounds(best.predictions, demands)):
        return ""
    place = max(asking, key=lambda place: free.full[place].p99_s / (demands[place].p99_s or 1.0))
    given, bound = free.full[place], demands[place].p99_s or 0.0
    if given.p99_s <= bound:
        return ""
    now, most = (sum(one.rate for one in some) for some in (best.predictions, free.full))
    return (
        f"the latency asked for (--p99): 99 of 100 answers of {demands[place].model} within {1e3 * bound:g} ms; "
        f"without it {most:.1f} requests/s would be possible, not {now:.1f}, at a p99 of {1e3 * given.p99_s:.0f} ms"
    )


def _rounds(predictions: Sequence[Prediction], demands: Sequence[Demand]) -> list[float]:
    return [one.rate / demand.rate for one, demand in zip(predictions, demands, strict=True)]


def _most(
    best: Tried, demands: Sequence[Demand], nodes: Sequence[Node], objective: Objective, ways: Sequence[Share]
) -> str:
    """Of a plan for all that the nodes give: by the models that fare worst, since the rates keep their ratio."""
    rounds = _rounds(best.predictions, demands)
    worst = [model for model, reached in enumerate(rounds) if reached <= WORTH_TELLING * min(rounds)]
    model = max(worst, key=lambda model: max(best.predictions[model].busy))
    busy = best.predictions[model].busy
    place = max(range(len(busy)), key=busy.__getitem__)
    way = max(ways, key=lambda one: one.used)
    if way.used >= FULL and way.used >= busy[place]:
        return way.told
    told = f"{demands[model].model} stage {place} computes {100 * busy[place]:.0f} % of the time"
    if objective.callers is not None and len(demands) == 1 and max(busy[place], way.used) < FULL:
        return f"the callers (--callers): each of {objective.callers} waits for its answer, and {told}"
    return f"{told}; {_room_for(best.plans, model, place, nodes, others=True)}"


def _grows(best: Tried, demands: Sequence[Demand], nodes: Sequence[Node], ways: Sequence[Share]) -> str:
    """Of a plan for a rate: what would be the first to give way to a higher one."""
    shares = list(ways)
    for model, (demand, plan, prediction) in enumerate(zip(demands, best.plans, best.predictions, strict=True)):
        place = max(range(len(prediction.busy)), key=prediction.busy.__getitem__)
        busy = prediction.busy[place]
        told = f"{demand.model} stage {place} computes {100 * busy:.0f} % of the time"
        room = _room_for(best.plans, model, place, nodes, others=False)
        first = f"{told}; it is the first to need a replica when the rate grows: {room}"
        shares.append(Share(busy, _growth(busy), first))
        if demand.p99_s is not None:
            late = f"the latency asked for (--p99): {demand.model} gives a p99 of {1e3 * prediction.p99_s:.0f} ms where"
            late += f" {1e3 * demand.p99_s:g} ms is asked for, and {told}; it is the first to be late when the rate "
            growth = latency_growth(busy, prediction.p99_s, demand.p99_s, alone_s(demand, plan))
            shares.append(Share(prediction.p99_s / demand.p99_s, growth, late + "grows"))
    return min(shares, key=lambda one: one.growth).told


def _growth(used: float) -> float:
    return FULL / used if used > 0 else float("inf")


def latency_growth(busy: float, p99_s: float, asked_s: float, alone: float) -> float:
    """How many times the rate keeps the latency: what a request waits grows as busy / (1 - busy), as in any queue."""
    waits, may_wait = p99_s - alone, asked_s - alone
    if not 0 < busy < 1 or waits <= 0:
        return float("inf")
    odds = may_wait / waits * busy / (1 - busy)
    return odds / (1 + odds) / busy


def _room_for(plans: Sequence[ModelPlan], model: int, place: int, nodes: Sequence[Node], *, others: bool) -> str:
    """Whether one more replica of this stage has a place beside the plan, and if not, what it lacks.

    others: where it has, tells of the next stage that has none: all grow together.
    """
    room = Room(nodes)
    for plan in plans:
        for stage in plan.stages:
            for name in stage.nodes:
                room.take(name, need(stage))

    def host(wanted: Need) -> str | None:
        return next((node.name for index, node in enumerate(nodes) if room.fits(index, wanted)), None)

    wanted = need(plans[model].stages[place])
    found = host(wanted)
    if found is None:
        return f"no node has room for one more replica of it: {room.shortage(wanted)}"
    told = f"{found} has room for one more"
    for plan in [plans[model], *plans] if others else []:
        for number, stage in enumerate(plan.stages):
            if host(need(stage)) is None:
                short = room.shortage(need(stage))
                return (
                    f"{told}, but one more of {plan.model} stage {number}, with which it grows, has no place: {short}"
                )
    return told


def _gateways(demands: Sequence[Demand], rates: Sequence[float], road: Road, hosts: Sequence[Node | None]) -> Share:
    """Their processes: each has an event loop, and one core at most."""
    seconds = 0.0
    for demand, rate in zip(demands, rates, strict=True):
        nbytes = _bytes(demand, 0, demand.rows) + _bytes(demand, demand.costs.steps, demand.rows)
        seconds += rate * (road.gateway_in + road.gateway_out + nbytes * road.gateway_byte)
    slowest = min(host.speed if host else 1.0 for host in hosts)
    used = seconds / len(hosts) / slowest
    count = f"{len(hosts)} gateway process" + ("es" if len(hosts) > 1 else "")
    told = f"the gateway: {count} would be busy {100 * used:.0f} % of the time with what a request's road takes"
    return Share(used, _growth(used), f"{told}; plan with more --gateways, and serve with as many")


def _networks(
    demands: Sequence[Demand],
    plans: Sequence[ModelPlan],
    rates: Sequence[float],
    nodes: Mapping[str, Node],
    gateways: Sequence[str | None],
) -> list[Share]:
    """The busiest direction of any node's network; none where nothing leaves a node."""
    flows: dict[tuple[str, bool], dict[str, float]] = defaultdict(lambda: defaultdict(float))
    """Bytes a second of each hop, by node and whether they leave it."""
    entries = _parts([name or "" for name in gateways])
    for demand, plan, rate in zip(demands, plans, rates, strict=True):
        hosts = [entries, *(_parts(stage.nodes) for stage in plan.stages)]
        edges = [0, *(stage.high for stage in plan.stages[:-1])]
        back = rate * _bytes(demand, demand.costs.steps, demand.rows)
        for place, point in enumerate(edges):
            forth = rate * _bytes(demand, point, demand.rows)
            hop = f"{demand.model}'s stage {place - 1} to stage {place}" if place else f"the gateway to {demand.model}"
            for name, leaves in _crossing(hosts[place], hosts[place + 1]).items():
                flows[name, True][hop] += forth * leaves
                flows[name, False][hop] += back * leaves
            for name, comes in _crossing(hosts[place + 1], hosts[place]).items():
                flows[name, False][hop] += forth * comes
                flows[name, True][hop] += back * comes
    found = [(sum(hops.values()) / nodes[name].network, name, leaves) for (name, leaves), hops in flows.items() if name]
    if not found:
        return []
    used, name, leaves = max(found)
    hops = flows[name, leaves]
    hop = max(hops, key=hops.__getitem__)
    gbit = nodes[name].network * 8 / 1e9
    told = (
        f"the network of {name}: what {'leaves' if leaves else 'reaches'} it would take {100 * used:.0f} % of its "
        f"{gbit:g} Gbit/s, most of that from {hop}"
        + ("; the simulation counts no transfer against another, so less than predicted is reached" if used > 1 else "")
    )
    return [Share(used, _growth(used), told)]


def _parts(names: Sequence[str]) -> dict[str, float]:
    """Which share of the requests each node gets."""
    return {name: count / len(names) for name, count in Counter(names).items()}


def _crossing(senders: Mapping[str, float], takers: Mapping[str, float]) -> dict[str, float]:
    """For each sender, the share of all that goes from it to other nodes."""
    return {name: part * (1 - takers.get(name, 0.0)) for name, part in senders.items()}


def _bytes(demand: Demand, point: int, rows: int) -> int:
    return demand.costs.travels(point, rows, demand.length)
