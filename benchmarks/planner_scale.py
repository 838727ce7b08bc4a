"""How far does the planner reach, and what do its pipelines gain? Simulated: nothing here is measured on machines.

Scale: 1,000 nodes of three kinds and 50 models of different sizes, some too large for most nodes, popular as Zipf has
it. How long does planning take, and how much of the upper bound does the plan reach in simulation?

Bursts, as in AlpaServe's evaluation (Li et al., OSDI 2023): eight devices that each have room for two of sixteen large
models, requests in bursts (Gamma, coefficient of variation 4), latency bound 5 times that of a request alone. What rate
is kept for 99 of 100 requests with whole models only, and what with pipelines over several devices?

    python -m benchmarks.planner_scale [--nodes 1000] [--models 50] [--variation 4] [--json]
"""

import argparse
import json
import random
import time
from typing import Any

from rich.console import Console
from rich.table import Table

from cluster.planning.costs import Costs
from cluster.planning.deployment import Demand, Plan
from cluster.planning.judge import Objective
from cluster.planning.machines import GIB, Node, total
from cluster.planning.planner import NothingFits, plan
from cluster.planning.shapes import Limits
from cluster.planning.simulator import Setting
from tests.cluster.planning.profiles import chain

PUBLISHED = "AlpaServe (OSDI 2023): up to 10x the rate with the latency kept for over 99 % of requests"
GATEWAYS = 64
"""Processes, on machines of their own; one bears some 7,000 requests a second."""
DEVICES, MODELS = 8, 16
ALONE_MS, MODEL_GIB, DEVICE_GIB = 240.0, 5.4, 16.0


def cluster(count: int) -> list[Node]:
    """Six in ten small, three in ten large and faster, one in ten with a GPU."""
    small, large = count * 6 // 10, count * 3 // 10
    nodes = [Node(f"small-{place}", 8, 32 * GIB) for place in range(small)]
    nodes += [Node(f"large-{place}", 32, 128 * GIB, speed=1.3) for place in range(large)]
    rest = count - small - large
    return nodes + [Node(f"gpu-{place}", 16, 128 * GIB, gpus=2, gpu_memory=40 * GIB) for place in range(rest)]


def crowd(count: int, seed: int = 0) -> list[Demand]:
    """Models of 10 to 200 ms a row and 0.2 to 30 GiB; the n-th is asked for 1/n as often as the first."""
    chance = random.Random(seed)
    demands = []
    for place in range(count):
        steps = chance.randint(12, 40)
        times = [chance.uniform(0.5, 1.5) for _ in range(steps)]
        row_ms = 10 * 20 ** chance.random()
        scale = row_ms / sum(times)
        gib = 0.2 * 150 ** chance.random()
        packaged = [tuple(steps * part // parts for part in range(1, parts)) for parts in (1, 2, 4)]
        profile = chain(
            [value * scale for value in times],
            packaged=packaged,
            weight_mib=gib * 1024 / steps,
            per_batch_ms=row_ms * chance.uniform(0.2, 1.0),
            devices=[("cpu", 1.0), ("cuda", chance.uniform(10, 60))],
            threads=(1, 4, 8),
            process_mib=260,
        )
        demands.append(Demand(f"model-{place}", Costs(profile), rate=1.0 / (place + 1)))
    return demands


def scale(nodes: int, models: int) -> tuple[dict[str, Any], Plan]:
    machines, demands = cluster(nodes), crowd(models)
    limits = Limits(most_stages=4, max_rows=(1, 8, 32), shares=(1.0,))
    setting = Setting(machines, gateways=(None,) * GATEWAYS, seconds=10.0, warm_up_s=5.0)  # batches take seconds
    began = time.perf_counter()
    found = plan(demands, machines, Objective("max_throughput"), limits=limits, setting=setting)
    taken = time.perf_counter() - began
    stages = [len(one.stages) for one in found.models]
    return {
        "nodes": nodes,
        "models": models,
        "seconds_to_plan": round(taken, 1),
        "replicas": sum(stage.replicas for one in found.models for stage in one.stages),
        "models_cut": sum(count > 1 for count in stages),
        "achieved_per_second": round(found.achieved, 1),
        "bound_per_second": round(found.bound, 1),
        "share_of_bound": round(found.achieved / found.bound, 4),
    }, found


def bursty(variation: float) -> list[Demand]:
    """Sixteen models, each of eight equal parts, of which two whole ones fit into a device."""
    packaged = [tuple(8 * part // parts for part in range(1, parts)) for parts in (1, 2, 4, 8)]
    profile = chain(
        [ALONE_MS / 8] * 8, packaged=packaged, weight_mib=MODEL_GIB * 1024 / 8, process_mib=100, row_bytes=200_000
    )
    slo = 5 * ALONE_MS / 1e3
    costs = Costs(profile)
    return [
        Demand(f"m{place}", costs, rate=1.0, p99_s=slo, variation=variation, deadline_s=slo) for place in range(MODELS)
    ]


def kept_rate(demands: list[Demand], stages: int) -> float:
    """Requests a second of all models together that are kept within the bound; 0 where nothing fits."""
    nodes = [Node(f"d{place}", 1, int(DEVICE_GIB * GIB), latency_s=2e-5) for place in range(DEVICES)]
    per_device = MODELS * stages / DEVICES
    limits = Limits(stages=stages, max_rows=(1,), shares=(1.0 / per_device,))
    setting = Setting(nodes, seconds=600.0)
    try:
        return plan(demands, nodes, Objective("max_throughput"), limits=limits, setting=setting).achieved
    except NothingFits:
        return 0.0


def bursts(variation: float) -> dict[str, Any]:
    demands = bursty(variation)
    rates = {stages: kept_rate(demands, stages) for stages in (1, 2, 4, 8)}
    best = max(rates, key=lambda stages: rates[stages])
    return {
        "variation": variation,
        **{f"rate_{stages}_stages": round(rate, 2) for stages, rate in rates.items()},
        "best_stages": best,
        "gain_over_replicas_only": round(rates[best] / rates[1], 2) if rates[1] else None,
        "published": PUBLISHED,
    }


def show(figures: dict[str, Any], title: str) -> None:
    table = Table("figure", "value", title=title)
    for name, value in figures.items():
        table.add_row(name, str(value))
    Console(width=130).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--models", type=int, default=50)
    parser.add_argument("--variation", type=float, nargs="+", default=[1.0, 2.0, 4.0], help="of the bursts")
    parser.add_argument("--json", action="store_true", help="print one last line of JSON")
    given = parser.parse_args()
    at_scale, found = scale(given.nodes, given.models)
    show(at_scale, f"{given.models} models on {total(found.nodes)}")
    in_bursts = [bursts(variation) for variation in given.variation]
    for figures in in_bursts:
        show(figures, f"{MODELS} models on {DEVICES} devices, variation {figures['variation']:g}, simulated")
    if given.json:
        print(json.dumps(at_scale | {"bursts": in_bursts}))


if __name__ == "__main__":
    main()
