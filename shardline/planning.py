"""`shardline plan`: how to run models on nodes, from what was measured of them."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil
from rich.console import Console

from cluster.planning.costs import Costs
from cluster.planning.deployment import Demand, ModelPlan
from cluster.planning.judge import Objective
from cluster.planning.machines import Node, read_nodes, this_machine
from cluster.planning.planner import plan
from cluster.planning.shapes import Limits
from cluster.planning.simulator import Setting
from shardline import exits
from shardline.plan_view import as_document, out_of_bounds, served_as, show
from shardline.profiling import version_folder
from worker.errors import InvalidRequest
from worker.gpu import memories
from worker.model_yaml import ModelYaml, model_yaml_text, parse_model_yaml, read_model_yaml, write_model_yaml
from worker.profile import read_profile


@dataclass(frozen=True, slots=True)
class PlanSettings:
    """What is asked.

    models: folder, and its own rate (requests a second) or None. rate: of those without their own.
    p99_s: model and seconds; of no model: of those without their own. nodes: the nodes file; None: this machine.
    gateways: gateway processes, one a node, which share its cores. write: put the plan into each model.yaml.
    """

    models: tuple[tuple[Path, float | None], ...]
    rate: float | None
    p99_s: tuple[tuple[str | None, float], ...]
    max_throughput: bool
    min_nodes: bool
    nodes: Path | None
    lengths: tuple[int, int] | None
    variation: float
    callers: int | None
    stages: int | None
    any_cut: bool
    gateways: int
    write: bool


def _free_memory() -> int:
    """About what an embedded Ray would offer: what is free now, but for its object store and its own processes."""
    return int(0.9 * psutil.virtual_memory().available)


def run(settings: PlanSettings, *, as_json: bool) -> int:
    nodes = read_nodes(settings.nodes) if settings.nodes else this_machine(_free_memory(), gpus=memories())
    folders = [version_folder(path) for path, _ in settings.models]
    demands = _demands(settings, folders)
    found = plan(
        demands,
        nodes,
        _objective(settings),
        limits=Limits(stages=settings.stages, any_cut=settings.any_cut),
        setting=Setting(nodes, gateways=_gateways(settings, nodes)),
    )
    files = [folder.parent / "model.yaml" for folder in folders]
    realised = [
        served_as(one, read_model_yaml(file) if file.exists() else ModelYaml(), nodes)
        for one, file in zip(found.models, files, strict=True)
    ]
    if settings.write:
        _write(found.models, demands, files, realised)
    if as_json:
        sys.stdout.write(json.dumps(as_document(found, demands, realised)) + "\n")
        return exits.OK
    console = Console()
    show(found, demands, console)
    for one, demand, file, yaml in zip(found.models, demands, files, realised, strict=True):
        console.print(
            f"\n{_told(one, demand, file, yaml, written=settings.write)}", highlight=False, markup=False, soft_wrap=True
        )
    return exits.OK


def _demands(settings: PlanSettings, folders: list[Path]) -> list[Demand]:
    names = [folder.parent.resolve().name for folder in folders]
    late = _latencies(settings.p99_s, names)
    demands = []
    for folder, (_, own) in zip(folders, settings.models, strict=True):
        costs = Costs(read_profile(folder))
        rate = own if own is not None else settings.rate
        if rate is None and not settings.max_throughput:
            raise InvalidRequest(
                f"{folder.parent.name}: at what rate? Say --rate REQUESTS_A_SECOND, or {folder.parent.name}=RATE, "
                "or --max-throughput"
            )
        measured = [entry.length for entry in costs.profile.living]
        middle = measured[len(measured) // 2]
        demands.append(
            Demand(
                folder.parent.resolve().name,
                costs,
                rate=1.0 if rate is None else rate,
                p99_s=late.get(folder.parent.resolve().name, late.get(None)),
                lengths=settings.lengths or (middle, middle),
                variation=settings.variation,
            )
        )
    if len(set(names)) < len(names):
        raise InvalidRequest(f"{', '.join(names)}: each model once")
    return demands


def _latencies(given: tuple[tuple[str | None, float], ...], names: list[str]) -> dict[str | None, float]:
    found: dict[str | None, float] = {}
    for name, seconds in given:
        if name is not None and name not in names:
            raise InvalidRequest(
                f"--p99: expected one of the models {', '.join(names)}, got {name!r}; write it as NAME=TIME"
            )
        if name in found:
            whose = "for all models, got two; NAME=TIME is for one of them" if name is None else f"for {name}, got two"
            raise InvalidRequest(f"--p99: expected one time {whose}")
        found[name] = seconds
    return found


def _objective(settings: PlanSettings) -> Objective:
    if settings.max_throughput:
        return Objective("max_throughput", settings.callers)
    return Objective("min_nodes" if settings.min_nodes else "rate")


def _gateways(settings: PlanSettings, nodes: tuple[Node, ...]) -> tuple[str | None, ...]:
    return tuple(nodes[place % len(nodes)].name for place in range(settings.gateways)) or (None,)


def _write(models: tuple[ModelPlan, ...], demands: list[Demand], files: list[Path], realised: list[ModelYaml]) -> None:
    for one, demand, file in zip(models, demands, files, strict=True):
        if not _packaged(one, demand):
            raise InvalidRequest(
                f"{file}: not written: the artifact is not packaged with a cut at {list(one.points)}; "
                f"plan without --any-cut, or package the model with --stages {len(one.stages)}"
            )
    beyond = [
        f"{file}: not written: {told}"
        for file, yaml in zip(files, realised, strict=True)
        for told in out_of_bounds(yaml)
    ]
    if beyond:
        raise InvalidRequest("\n".join(beyond))
    for file, yaml in zip(files, realised, strict=True):
        parse_model_yaml(model_yaml_text(yaml).encode(), f"{file}, as the plan would write it")
    for file, yaml in zip(files, realised, strict=True):
        write_model_yaml(file, yaml)


def _packaged(one: ModelPlan, demand: Demand) -> bool:
    return one.points in demand.costs.profile.packaged


def _told(one: ModelPlan, demand: Demand, file: Path, yaml: ModelYaml, *, written: bool) -> str:
    if written:
        return f"{file} now says so; a running serve takes it up at its next roll-out or start"
    if not _packaged(one, demand):
        return (
            f"{one.model} is not packaged with a cut at {list(one.points)}; `shardline package … --stages "
            f"{len(one.stages)}` cuts it into as many stages at the places that it finds best"
        )
    replicas = list(yaml.stage_replicas)
    return (
        f"{file} with these keys realises it (--write puts them there):\n"
        f"  stages: {yaml.stages}\n  replicas: {replicas if len(replicas) > 1 else replicas[0]}\n"
        f"  cpus: {_list(yaml.cpus)}\n  memory_mib: {_list(yaml.memory_mib)}\n  device: {_list(yaml.device)}\n"
        f"{_placement(yaml)}"
        f"  batching: {{max_rows: {yaml.batching.max_rows}, max_wait_ms: {yaml.batching.max_wait_ms:g}}}"
        + "".join(f"\nbut not with its {told}" for told in out_of_bounds(yaml))
    )


def _placement(yaml: ModelYaml) -> str:
    labels = yaml.placement.labels
    return f"  placement: {{labels: {_list(labels)}}}\n" if labels else ""


def _list(value: object) -> str:
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_list, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {each}" for name, each in value.items()) + "}"
    return f"{value:g}" if isinstance(value, float) else str(value)
