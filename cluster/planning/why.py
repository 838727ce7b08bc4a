"""Why there is no plan, in words that say what to do."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from cluster.planning.deployment import Demand
from cluster.planning.judge import Tried
from cluster.planning.machines import GIB, Node, total
from cluster.planning.road import Road
from cluster.planning.shapes import Limits, shapes


def why_no_shape(demand: Demand, nodes: Sequence[Node], limits: Limits, road: Road) -> str:
    """Why no node can hold any stage of the model, or none is fast enough."""
    costs = demand.costs
    known = {node.device for node in nodes} | {node.gpu_device for node in nodes if node.gpus}
    if not known & set(costs.devices):
        return (
            f"{demand.model} is profiled on {', '.join(costs.devices)}, and the nodes have {', '.join(sorted(known))}: "
            "profile it on one of those, or name their device in the nodes file"
        )
    free = replace(demand, p99_s=None)
    alone = [shape.alone_s for shape in shapes(free, nodes, limits, road)]
    if alone:
        asked = 1e3 * (demand.p99_s or 0)
        return (
            f"{demand.model}: a request alone takes {1e3 * min(alone):.1f} ms at best, and {asked:g} ms is asked for: "
            "allow more, shorten the requests (--lengths), or use faster nodes"
        )
    largest = max(max(node.memory, node.gpu_memory) for node in nodes) / GIB
    finer = [] if limits.any_cut else list(shapes(free, nodes, replace(limits, any_cut=True), road))
    if finer:
        least = min(len(shape.stages) for shape in finer)
        return (
            f"{demand.model}: no packaged cut fits (the largest node has {largest:.2f} GiB), one into {least} stages "
            f"would: plan with --any-cut, or package it with --stages {least}"
        )
    smallest = min(
        costs.memory(low, high, 1, demand.lengths[1], device=device)
        for device in costs.devices
        for low, high in pairwise(costs.edges)
    )
    return (
        f"{demand.model}: no node holds any stage of it: the smallest takes {smallest / GIB:.2f} GiB with its process, "
        f"the largest node has {largest:.2f} GiB"
    )


def why_nothing(
    demands: Sequence[Demand], nodes: Sequence[Node], tried: Sequence[Tried], reasons: Sequence[str]
) -> str:
    asked = ", ".join(f"{demand.model} at {demand.rate:g} requests/s" for demand in demands)
    told = f"nothing fits: {asked} on {total(nodes)}"
    if tried:
        best = min(tried, key=lambda one: max(prediction.p99_s for prediction in one.predictions))
        told += f"; the best of {len(tried)} plans gives {best.missing}"
    elif reasons:
        told += f"; {reasons[0]}"
    return told + ". Add nodes, ask for less, or allow a longer --p99"
