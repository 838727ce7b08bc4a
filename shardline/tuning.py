"""`shardline tune`: searches, shows what it does, and leaves an artifact with its recipe and its report."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shardline import exits
from shardline.packaging import keep_or_write
from shardline.progress import steps
from shardline.signals import sigterm_as_ctrl_c
from worker.artifact import NOT_WRITTEN
from worker.errors import InvalidRequest
from worker.model_yaml import ModelYaml

if TYPE_CHECKING:
    from compressor.search.report import Report


def run(given: argparse.Namespace) -> int:
    sys.path.insert(0, "")  # a factory or an evaluation may stand in the folder where the command is typed
    try:
        with sigterm_as_ctrl_c(), steps(f"reading {given.source}") as begin:
            report = _searched(given, begin)
        handler = _handler(report.artifact)
        keep_or_write(given.out / "model.yaml", ModelYaml(handler=handler, stages=given.stages[0], device=given.device))
    except KeyboardInterrupt:
        sys.stderr.write(
            f"shardline: stopped; nothing half-made is left, and what was measured stays in {given.out / '.tune'}: "
            "the same command goes on from there\n"
        )
        return exits.FORCED
    except OSError as error:
        if error.errno not in NOT_WRITTEN:
            raise
        sys.stderr.write(
            f"shardline: {given.out}: cannot be written: {error}; no file is half-written, and what was measured stays "
            f"in {given.out / '.tune'}: where there is room, the same command goes on from there\n"
        )
        return exits.FAILED
    if given.json:
        sys.stdout.write(json.dumps(report.as_json()) + "\n")
    else:
        sys.stdout.write(shown(report.as_json(), str(given.out)))
    return exits.OK if report.found else exits.NOTHING_FOUND


def _searched(given: argparse.Namespace, begin: Any) -> "Report":
    from compressor.search.budget import read_budget  # noqa: PLC0415 -- torch takes seconds
    from compressor.search.objective import read_objective  # noqa: PLC0415
    from compressor.search.treatments import read_treatments  # noqa: PLC0415
    from compressor.search.tune import Request, tune  # noqa: PLC0415

    if given.address and not given.workers:
        raise InvalidRequest(f"--address {given.address}: trials run there on --workers; give their number")
    request = Request(
        source=given.source,
        out=given.out,
        evaluate=given.evaluate,
        data=given.data,
        max_drop=read_budget(given.max_drop),
        objective=read_objective(given.objective),
        calibration=given.calibration,
        drop_overlap=given.drop_overlap,
        device=given.device,
        time_limit_s=given.time_limit,
        treatments=read_treatments(given.treatments) if given.treatments else (),
        training=given.training,
        stages=tuple(given.stages),
        seed=given.seed,
        workers=given.workers,
        address=given.address,
        runtime=given.runtime,
        keep=given.keep,
    )
    return tune(request, begin)


def _handler(artifact: str) -> str | None:
    from worker.artifact import read_manifest  # noqa: PLC0415

    return read_manifest(Path(artifact)).handler


def shown(report: dict[str, Any], out: str) -> str:
    """The report in a few lines."""
    unit = report["unit"]
    lines = [report["reason"]] if report["found"] else [f"the model stays as it was: {report['reason']}"]
    lines.append(f"{report['evaluation']} on {report['held_out_records']} held-out records: {_told(report['figure'])}")
    if report["found"]:
        told = f"{_told(report['drop'])} {unit}, {report['allowed']:.3g} allowed"
        lines.append(f"lost: {told} (interval: {report['drop']['method']})")
    for row in report["rivals"]:
        if row["seconds"]:
            times = ", ".join(f"{batch} {seconds * 1e3:.3g} ms" for batch, seconds in row["seconds"].items())
            lines.append(f"{row['name']}: {times}")
    lines += [f"{out}/report.html", report["artifact"], ""]
    return "\n".join(lines)


def _told(figure: dict[str, Any]) -> str:
    return f"{figure['value']:.3f} ({figure['low']:.3f} to {figure['high']:.3f})"
