"""Turns what a search knows into its report: the last comparisons are measured here, then everything is written."""

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil
import torch
import yaml

from compressor.evaluation.bootstrap import Interval
from compressor.evaluation.evaluation import Evaluation
from compressor.evaluation.records import Records
from compressor.model import Model
from compressor.profiling.resident import resident_bytes
from compressor.recipe_file import RecipeFile
from compressor.search.finals import EAGER, compare, disk_bytes
from compressor.search.mixing import Mixing, Point
from compressor.search.objective import Objective
from compressor.search.page import page
from compressor.search.pareto import front
from compressor.search.report import Figure, LayerTold, PointRow, Report, RivalRow, write_json, write_whole
from compressor.search.rivals import ONNX, onnx_file, onnx_int8, tried
from compressor.search.trial import Setting, fresh_model, timed_inputs
from compressor.search.verdict import Bench, Verdict
from compressor.steps import described
from worker.errors import ShardlineError
from worker.runtime import instruction_set

ROWS: Final = (1, 8, 32)
"""Batches at which what is returned is compared, beside the objective's."""

COMPILED: Final = "uncompressed artifact"
RETURNED: Final = "returned"

RECIPE, JSON, HTML = "recipe.yaml", "report.json", "report.html"


@dataclass(frozen=True, slots=True)
class Asked:
    """What was asked, for the report's head."""

    source: str
    evaluate: str
    budget: str
    objective: Objective
    setting: Setting
    calibration: Records
    held_out: Records
    evaluation: Evaluation


def report_of(
    asked: Asked,
    bench: Bench,
    mixing: Mixing,
    verdict: Verdict,
    *,
    folder: Path,
    recipe: RecipeFile | None,
    rivals: list[RivalRow],
    trials: int,
) -> Report:
    """The report on a search. `folder`: of the artifact that is returned. `rivals`: see `rivals_of`."""
    evaluation, setting = asked.evaluation, asked.setting
    chosen = verdict.point.treatments if verdict.point else {}
    return Report(
        source=asked.source,
        artifact=str(folder),
        found=verdict.point is not None,
        reason=verdict.reason,
        evaluation=asked.evaluate,
        unit=evaluation.unit,
        higher_is_better=evaluation.higher_is_better,
        budget=asked.budget,
        allowed=bench.allowed,
        objective=asked.objective.told(bench.lab.model),
        device=setting.device,
        stages=setting.stages,
        seed=setting.seed,
        calibration=asked.calibration.source,
        calibration_records=len(asked.calibration),
        held_out=asked.held_out.source,
        held_out_records=len(asked.held_out),
        looks=bench.held_out.looks,
        baseline=_figure(bench.base),
        figure=_figure(verdict.figure),
        drop=_figure(verdict.drop),
        recipe=recipe.model_dump(mode="json") if recipe else None,
        points=_points(mixing, timed=asked.objective.timed),
        left_out=dict(mixing.left_out),
        layers=[
            LayerTold(
                row.group,
                row.treatment,
                row.distance,
                row.drop,
                row.alone_seconds,
                row.gain_seconds,
                row.saved_bytes,
                chosen.get(row.group) == row.treatment,
                row.problem,
            )
            for row in mixing.rows
        ],
        rivals=rivals,
        trials=trials,
        machine=_machine(setting),
    )


def _points(mixing: Mixing, *, timed: bool) -> list[PointRow]:
    def costs(point: Point) -> tuple[float, float]:
        known = point.seconds if point.seconds is not None else float("inf")
        return (known if timed else float(point.bytes), point.drop.value)

    kept = {id(point) for point in front(list(mixing.points.values()), costs)}
    return [
        PointRow(
            name=point.name,
            drop=_figure(point.drop),
            held_out=_figure(point.held_out) if point.held_out else None,
            seconds=point.seconds,
            bytes=point.bytes,
            front=id(point) in kept and (point.seconds is not None or not timed),
            verdict=point.verdict,
            treatments=dict(point.treatments),
            recipe=described(point.recipe),
        )
        for point in mixing.points.values()
    ]


def rivals_of(asked: Asked, bench: Bench, verdict: Verdict) -> list[RivalRow]:
    """What is returned, beside the uncompressed model in two ways and ONNX Runtime where it is installed."""
    model = bench.lab.model
    work = bench.builder.work
    objective = asked.objective
    batches = _batches(model, objective)
    folders = {COMPILED: bench.baseline} | ({RETURNED: verdict.folder} if verdict.point else {})
    found = bench.lab.alone((compare, (folders, batches, work)))
    resident, problem = _resident(folders, objective, asked.setting)
    rows = []
    for name, seconds in found["seconds"].items():
        if name in folders:
            returned = name == RETURNED
            rows.append(
                RivalRow(
                    name,
                    seconds,
                    _figure(verdict.figure if returned else bench.base),
                    _figure(verdict.drop) if returned else None,
                    disk_bytes(folders[name]),
                    resident.get(name),
                    problem,
                )
            )
        elif name == ONNX:
            rows.append(_onnx_row(bench, asked.setting, seconds))
        else:
            rows.append(RivalRow(name, seconds, note="" if name != EAGER else "fp32"))
    rows += [RivalRow(name, {}, note=problem) for name, problem in found["problems"].items()]
    return rows


def _onnx_row(bench: Bench, setting: Setting, seconds: Mapping[str, float]) -> RivalRow:
    file = onnx_file(bench.builder.work, setting.key)
    judged = tried(lambda: bench.held_out.aside(onnx_int8(fresh_model(setting), file)))
    if isinstance(judged, str):
        return RivalRow(ONNX, seconds, note=judged)
    figure, drop = judged
    return RivalRow(ONNX, seconds, _figure(figure), _figure(drop), file.stat().st_size)


def _resident(folders: Mapping[str, Path], objective: Objective, setting: Setting) -> tuple[dict[str, int], str]:
    """Resident bytes by name, or why there are none."""
    try:
        found = resident_bytes(
            list(folders.values()),
            objective.rows,
            objective.length,
            stages=setting.stages,
            device=setting.device,
            key=setting.machine_key,
        )
    except ShardlineError as error:
        return {}, str(error)
    return {name: item.ran for name, item in zip(folders, found, strict=True)}, ""


def _batches(model: Model, objective: Objective) -> dict[str, tuple[torch.Tensor, ...]]:
    rows = sorted({*ROWS, *([objective.rows] if objective.timed else [])})
    found = {}
    for count in rows:
        sizes = Objective("latency", count, objective.length).sizes(model)
        found["x".join(str(size) for size in sizes.values()) or "fixed"] = timed_inputs(model, sizes)
    return found


def _figure(interval: Interval) -> Figure:
    return Figure(interval.value, interval.low, interval.high, interval.level, interval.method)


def _machine(setting: Setting) -> dict[str, str]:
    return {
        "processor": instruction_set(setting.device),
        "cores": str(psutil.cpu_count(logical=True)),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def write_report(out: Path, report: Report, recipe: RecipeFile | None) -> None:
    """report.json, report.html and recipe.yaml under `out`, each whole. No recipe: the model stays as it was."""
    write_json(out / JSON, report)
    write_whole(out / HTML, page(report.as_json()))
    if recipe is None:
        (out / RECIPE).unlink(missing_ok=True)
    else:
        write_whole(out / RECIPE, recipe_text(recipe.model_dump(mode="json")))


def recipe_text(document: Mapping[str, Any]) -> str:
    told = {key: value for key, value in document.items() if value is not None}
    return yaml.safe_dump(told, sort_keys=False, allow_unicode=True)
