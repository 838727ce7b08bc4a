"""A plan for people (tables, and a picture of the pipeline on the nodes) and for machines (one JSON object)."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, TypeVar

from rich.console import Console
from rich.table import Table

from cluster.planning.deployment import Demand, ModelPlan, Plan, StagePlan
from cluster.planning.kinds import labels_for, telling
from cluster.planning.machines import GIB, Node
from worker.model_yaml import ModelYaml, model_yaml_text
from worker.per_stage import MIB, of_each

BAR = 20
SHOWN_NODES = 24

T = TypeVar("T")


def served_as(plan: ModelPlan, before: ModelYaml, nodes: Sequence[Node]) -> ModelYaml:
    """`before` with the keys that realise the plan on `nodes`. Labels that tell no kinds apart stay as they were."""
    batching = before.batching.model_copy(update={"max_rows": plan.max_rows, "max_wait_ms": 1e3 * plan.max_wait_s})
    return before.model_copy(
        update={
            "stages": len(plan.stages),
            "replicas": tuple(stage.replicas for stage in plan.stages),
            "cpus": _one_or_each([stage.cpus for stage in plan.stages]),
            "memory_mib": _one_or_each([math.ceil(stage.memory / MIB) for stage in plan.stages]),
            "device": _one_or_each(["cuda" if stage.gpus else "cpu" for stage in plan.stages]),
            "batching": batching,
            "placement": before.placement.model_copy(update={"labels": _labels(plan, before, nodes)}),
        }
    )


def out_of_bounds(served: ModelYaml) -> list[str]:
    """Where its autoscaling would not leave the planned replicas at that: `serve` would begin with others."""
    scaling = served.autoscaling
    if scaling.max is None:
        return []
    found = []
    planned = of_each(served.replicas, served.stages)
    for key, bounds in (("max", of_each(scaling.max, served.stages)), ("min", of_each(scaling.min, served.stages))):
        if len(bounds) != len(planned):
            continue  # of another cut; whoever checks the file says so
        for stage, (count, bound) in enumerate(zip(planned, bounds, strict=True)):
            if key == "max" and count > bound:
                mend = f"raise it to {count}, plan for less, or set it to null: no autoscaling"
            elif key == "min" and count < bound:
                mend = f"lower it to {count}"
            else:
                continue
            found.append(f"autoscaling.{key}: stage {stage}: expected the plan's {count}, got {bound}: {mend}")
    return found


def _labels(plan: ModelPlan, before: ModelYaml, nodes: Sequence[Node]) -> dict[str, str] | tuple[dict[str, str], ...]:
    given = before.placement.labels
    if isinstance(given, tuple) and len(given) != len(plan.stages):
        return given  # of another cut: nobody knows what it means for this one, and it cannot be written
    ours = telling(nodes)
    return _one_or_each(
        [
            {name: value for name, value in old.items() if name not in ours} | dict(labels_for(stage, nodes) or {})
            for stage, old in zip(plan.stages, of_each(given, len(plan.stages)), strict=True)
        ]
    )


def _one_or_each(values: list[T]) -> T | tuple[T, ...]:
    return values[0] if all(value == values[0] for value in values) else tuple(values)


def elsewhere(plan: Plan) -> list[str]:
    """What the plan cannot keep: stages that may come to nodes of another kind than they were planned for."""
    return [
        f"{one.model} stage {place} was planned for nodes with {stage.device}, and no label in the nodes file tells "
        "them from the others, so it may come to one of those; start the nodes with `--labels kind=…`, and say so in "
        "the file: `labels: {kind: …}`"
        for one in plan.models
        for place, stage in enumerate(one.stages)
        if labels_for(stage, plan.nodes) is None
    ]


def as_document(plan: Plan, demands: Sequence[Demand], realised: Sequence[ModelYaml]) -> dict[str, Any]:
    return {
        "achieved_per_second": plan.achieved,
        "bound_per_second": plan.bound,
        "limit": plan.limit,
        "runner_up": plan.runner_up,
        "considered": plan.considered,
        "nodes_used": plan.nodes_used,
        "models": [
            {
                "model": one.model,
                "measured": one.measured,
                "points": list(one.points),
                "max_rows": one.max_rows,
                "max_wait_ms": 1e3 * one.max_wait_s,
                "rate": prediction.rate,
                "p50_ms": 1e3 * prediction.p50_s,
                "p95_ms": 1e3 * prediction.p95_s,
                "p99_ms": 1e3 * prediction.p99_s,
                "kept": prediction.kept,
                "asked": {"rate": demand.rate, "p99_ms": None if demand.p99_s is None else 1e3 * demand.p99_s},
                "stages": [
                    {
                        "steps": [stage.low, stage.high],
                        "device": stage.device,
                        "replicas": stage.replicas,
                        "threads": stage.threads,
                        "cpus": stage.cpus,
                        "gpus": stage.gpus,
                        "memory_bytes": stage.memory,
                        "labels": found if (found := labels_for(stage, plan.nodes)) is None else dict(found),
                        "busy": prediction.busy[place],
                        "nodes": list(stage.nodes),
                    }
                    for place, stage in enumerate(one.stages)
                ],
                "model_yaml": model_yaml_text(yaml),
                "out_of_bounds": out_of_bounds(yaml),
            }
            for one, prediction, demand, yaml in zip(plan.models, plan.predictions, demands, realised, strict=True)
        ],
    }


def show(plan: Plan, demands: Sequence[Demand], console: Console) -> None:
    for one, prediction, demand in zip(plan.models, plan.predictions, demands, strict=True):
        table = Table(
            title=f"{one.model}: {len(one.stages)} stage{'s' * (len(one.stages) > 1)}, {one.max_rows} rows a batch"
        )
        for name in ("stage", "steps", "device"):
            table.add_column(name)
        for name in ("replicas", "threads", "CPUs each", "MiB each", "ms a row", "ms a batch", "busy"):
            table.add_column(name, justify="right")
        for place, stage in enumerate(one.stages):
            one_row, full = (_seconds(demand, stage, rows) for rows in (1, one.max_rows))
            table.add_row(
                str(place),
                f"{stage.low}-{stage.high}",
                stage.device,
                str(stage.replicas),
                str(stage.threads),
                f"{stage.cpus:g}",
                f"{stage.memory / 2**20:.0f}",
                f"{1e3 * one_row:.1f}",
                f"{1e3 * full:.1f}",
                f"{100 * prediction.busy[place]:.0f} %",
            )
        console.print(table)
        console.print(
            f"predicted: {prediction.rate:.1f} requests/s, p50 {1e3 * prediction.p50_s:.1f} ms, "
            f"p95 {1e3 * prediction.p95_s:.1f} ms, p99 {1e3 * prediction.p99_s:.1f} ms"
            + ("" if one.measured else "; this cut was not measured: its times are derived from its steps'"),
            highlight=False,
        )
        console.print(_pipeline(one, demand), highlight=False, markup=False, soft_wrap=True)
    console.print()
    for line in _nodes(plan):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    console.print()
    console.print(f"limit: {plan.limit}", highlight=False, soft_wrap=True)
    console.print(
        f"upper bound: {plan.bound:.1f} requests/s on these nodes; this plan gives {plan.achieved:.1f}",
        highlight=False,
        soft_wrap=True,
    )
    if plan.runner_up:
        console.print(f"runner-up: {plan.runner_up}", highlight=False, soft_wrap=True, markup=False)
    for line in elsewhere(plan):
        console.print(f"mind: {line}", highlight=False, soft_wrap=True, markup=False)


def _seconds(demand: Demand, stage: StagePlan, rows: int) -> float:
    return demand.costs.seconds(stage.low, stage.high, rows, demand.length, device=stage.device, threads=stage.threads)


def _pipeline(one: ModelPlan, demand: Demand) -> str:
    parts = ["client ─▶ gateway"]
    for place, stage in enumerate(one.stages):
        nbytes = demand.costs.travels(stage.low, 1, demand.length)
        parts.append(f"─{_bytes(nbytes)}─▶ [stage {place} x{stage.replicas}]")
    return " ".join(parts)


def _bytes(nbytes: int) -> str:
    if nbytes < 1024:
        return f"{nbytes} B"
    return f"{nbytes / 1024:.0f} KiB" if nbytes < 2**20 else f"{nbytes / 2**20:.1f} MiB"


def _nodes(plan: Plan) -> list[str]:
    """A line a node: how much of its cores and memory the plan takes, and which replicas stand there."""
    hosted: dict[str, Counter[str]] = {}
    cpus: Counter[str] = Counter()
    memory: Counter[str] = Counter()
    for one in plan.models:
        for place, stage in enumerate(one.stages):
            for name in stage.nodes:
                hosted.setdefault(name, Counter())[f"{one.model}.{place}"] += 1
                cpus[name] += stage.cpus  # type: ignore[assignment]
                memory[name] += stage.memory
    used = [node for node in plan.nodes if node.name in hosted]
    lines = [_node(node, float(cpus[node.name]), memory[node.name], hosted[node.name]) for node in used[:SHOWN_NODES]]
    if len(used) > SHOWN_NODES:
        lines.append(f"… and {len(used) - SHOWN_NODES} more")
    idle = len(plan.nodes) - len(used)
    if idle:
        lines.append(f"{idle} node{'s' * (idle > 1)} left free")
    return lines


def _node(node: Node, cpus: float, memory: int, hosted: Counter[str]) -> str:
    filled = round(BAR * min(1.0, cpus / node.cpus))
    bar = "█" * filled + "░" * (BAR - filled)
    replicas = "  ".join(name + (f" x{count}" if count > 1 else "") for name, count in sorted(hosted.items()))
    return (
        f"{node.name:<14} {bar} {cpus:g}/{node.cpus:g} CPUs  {memory / GIB:.1f}/{node.memory / GIB:.1f} GiB"
        f"  │ {replicas}"
    )
