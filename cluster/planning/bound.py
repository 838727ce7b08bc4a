"""The most that any plan can reach: a linear programme's dual, so every price list gives a true bound. Pure.

A request of a model costs at least so many core-seconds on each kind of device, however it is cut, batched and
threaded. With a price per core-second of each kind, all that the nodes have is worth as much as what is served on it:
requests a second <= worth of the nodes / the least that one round of requests can cost. The best prices are searched.
"""

from collections.abc import Mapping, Sequence

from cluster.planning.costs import Costs
from cluster.planning.deployment import Demand
from cluster.planning.machines import Node


def least_core_seconds(costs: Costs, device: str, length: int, max_rows: Sequence[int]) -> float:
    """The least core-seconds of one row, over all cuts, threads and batch sizes: a shortest way through the edges."""
    edges = costs.edges

    def cheapest(low: int, high: int) -> float:
        return min(
            threads * costs.seconds(low, high, rows, length, device=device, threads=threads) / rows
            for threads in costs.thread_counts(device)
            for rows in max_rows
        )

    best = {edges[0]: 0.0}
    for place, high in enumerate(edges[1:], 1):
        best[high] = min(best[low] + cheapest(low, high) for low in edges[:place])
    return best[edges[-1]]


def supply(nodes: Sequence[Node]) -> dict[str, float]:
    """Core-seconds, or GPU-seconds, a second, of each device, counted in those of the profiled one."""
    found: dict[str, float] = {}
    for node in nodes:
        found[node.device] = found.get(node.device, 0.0) + node.cpus * node.speed
        if node.gpus:
            found[node.gpu_device] = found.get(node.gpu_device, 0.0) + node.gpus * node.gpu_speed
    return found


def most_rounds(demands: Sequence[Demand], nodes: Sequence[Node], max_rows: Sequence[int]) -> float:
    """How many times the demands' rates no plan can exceed."""
    have = supply(nodes)
    needs = []
    for demand in demands:
        kinds = [kind for kind in have if kind in demand.costs.devices]
        needs.append(
            {
                kind: demand.rate
                * demand.rows
                * least_core_seconds(
                    demand.costs,
                    kind,
                    demand.lengths[0] if demand.lengths[0] == demand.lengths[1] else demand.length,
                    max_rows,
                )
                for kind in kinds
            }
        )
    if any(not need for need in needs):
        return 0.0
    return _cheapest_bound(have, needs)


def _cheapest_bound(have: Mapping[str, float], needs: Sequence[Mapping[str, float]]) -> float:
    prices = dict.fromkeys(have, 1.0)

    def bound(trial: Mapping[str, float]) -> float:
        worth = sum(trial[kind] * amount for kind, amount in have.items())
        cost = sum(min(trial[kind] * seconds for kind, seconds in need.items()) for need in needs)
        return worth / cost if cost > 0 else float("inf")

    best = bound(prices)
    factor = 1024.0
    while factor > 1.001 and len(prices) > 1:
        better = False
        for kind in prices:
            for change in (factor, 1 / factor):
                trial = prices | {kind: prices[kind] * change}
                if bound(trial) < best - 1e-12:
                    best, prices, better = bound(trial), trial, True
        if not better:
            factor = factor**0.5
    return best
