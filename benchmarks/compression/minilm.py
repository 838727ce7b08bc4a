"""What does `tune` make of all-MiniLM-L6-v2 when half a point of Spearman (x100) on STS-B may be lost?

The search decides on STS-B train and is judged on STS-B dev. Then what it returned is timed again at (8, 64) against
the rivals of `benchmarks.shard`: each in a process of its own, on one thread, in turns. `drop_upper_bound` is the upper
end of the paired bootstrap interval on dev, by which the search accepted the artifact.

    python -m benchmarks.compression.minilm [--rounds 15] [--time-limit 1200] [--work build/benchmarks] [--json]
"""

import argparse
import contextlib
import json
import statistics
import sys
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from benchmarks.shard import (
    COMPILED,
    EAGER,
    ONNX,
    SHARD,
    WARM_UP,
    Rival,
    eager_runner,
    minilm,
    onnx_runner,
    shard_runner,
)
from benchmarks.shard import packaged as packaged_shard
from compressor.recipe import Recipe
from compressor.search.budget import Budget
from compressor.search.objective import read_objective
from compressor.search.report import Report, RivalRow
from compressor.search.rivals import ONNX as ONNX_IN_REPORT
from compressor.search.treatments import Template, Treatment, treatment
from compressor.search.tune import Request, tune
from worker.cores import cores

ROWS, LENGTH = 8, 64
MAX_DROP = 0.5
DATA = Path(__file__).parents[2].parent / "shared" / "data" / "stsb"

_INT8: Final[Template] = {"kind": "int8_dynamic"}
TREATMENTS: Final[tuple[Treatment, ...]] = (
    treatment(_INT8),
    treatment({"kind": "int8_static"}),
    treatment({"kind": "prune_neurons", "share": 0.125}, _INT8),
    treatment({"kind": "prune_neurons", "share": 0.25}, _INT8),
    treatment({"kind": "prune_heads", "share": 0.25}, _INT8),
)


def searched(folder: Path, work: Path, time_limit_s: float | None, console: Console) -> Report:
    """What the search returns, with an artifact under `work`."""
    request = Request(
        source=folder,
        out=work / "minilm-tuned",
        evaluate="spearman",
        data=DATA / "dev.csv",
        calibration=DATA / "train.csv",
        drop_overlap=True,
        max_drop=Budget(MAX_DROP),
        objective=read_objective(f"latency@{ROWS}x{LENGTH}"),
        treatments=TREATMENTS,
        time_limit_s=time_limit_s,
        workers=cores(),
    )
    return tune(request, lambda step: console.print(step, markup=False))


def milliseconds(rivals: list[Rival], rounds: int) -> dict[str, float]:
    """Medians of a batch of (8, 64), taken in turns."""
    taken: dict[str, list[float]] = {rival.name: [] for rival in rivals}
    for turn in range(WARM_UP + rounds):
        for rival in rivals:
            seconds = rival.seconds(ROWS, LENGTH)
            if turn >= WARM_UP:
                taken[rival.name].append(seconds * 1e3)
    return {name: statistics.median(values) for name, values in taken.items()}


def figures_of(report: Report, taken: dict[str, float]) -> dict[str, Any]:
    """The keys that are compared from run to run. A rival that is not installed gives null."""
    rivals: dict[str, RivalRow] = {row.name: row for row in report.rivals}
    onnx = rivals[ONNX_IN_REPORT].drop if ONNX_IN_REPORT in rivals else None

    def against(name: str) -> float | None:
        return round(taken[name] / taken[SHARD], 3) if name in taken else None

    return {
        "found": report.found,
        "reason": report.reason,
        "tried": [point.name for point in report.points],
        "left_out": dict(report.left_out),
        "drop_points": round(report.drop.value, 4),
        "drop_upper_bound": round(report.drop.high, 4),
        "spearman": round(report.figure.value, 3),
        "spearman_fp32": round(report.baseline.value, 3),
        "speedup_vs_eager": against(EAGER),
        "speedup_vs_compiled_fp32": against(COMPILED),
        "speedup_vs_onnxruntime_int8": against(ONNX),
        "drop_points_onnxruntime_int8": round(onnx.value, 4) if onnx else None,
        "milliseconds": {name: round(value, 3) for name, value in taken.items()},
        "search_seconds": round(report.seconds.get("all", 0.0), 1),
        "trials": report.trials,
    }


def show(figures: dict[str, Any], console: Console) -> None:
    table = Table(title=f"all-MiniLM-L6-v2 at ({ROWS}, {LENGTH}), one thread")
    for name in ("", "milliseconds", "what tune returned is faster"):
        table.add_column(name, justify="left" if not name else "right")
    own = figures["milliseconds"][SHARD]
    for name, value in figures["milliseconds"].items():
        table.add_row("tune" if name == SHARD else name, f"{value:.2f}", "" if name == SHARD else f"{value / own:.2f}x")
    console.print(table)
    rival = figures["drop_points_onnxruntime_int8"]
    console.print(
        f"points of Spearman x100 lost on STS-B dev: {figures['drop_points']:.3f}, at most "
        f"{figures['drop_upper_bound']:.3f} of {MAX_DROP} allowed"
        + (f"; ONNX Runtime int8: {rival:.3f}" if rival is not None else "")
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="rounds of which the median is taken")
    parser.add_argument("--time-limit", type=float, default=1200, help="of the search, seconds; 0: none")
    parser.add_argument("--work", type=Path, default=Path("build/benchmarks"), help="keeps what takes long to make")
    parser.add_argument("--json", action="store_true", help="prints one last line of JSON")
    given = parser.parse_args()
    console = Console(stderr=given.json)
    if not (DATA / "dev.csv").is_file():
        sys.exit(f"benchmarks.compression.minilm needs STS-B's dev.csv and train.csv in {DATA}")
    folder = minilm()
    given.work.mkdir(parents=True, exist_ok=True)
    report = searched(folder, given.work, given.time_limit or None, console)
    console.print(report.reason, markup=False)
    fp32 = packaged_shard(given.work, "minilm-fp32", Recipe(folder, None, (1,)), console.print)
    with contextlib.ExitStack() as stack:
        rivals = [
            Rival(EAGER, eager_runner, folder),
            Rival(COMPILED, shard_runner, fp32),
            Rival(ONNX, onnx_runner, folder, given.work),
            Rival(SHARD, shard_runner, Path(report.artifact)),
        ]
        for rival in rivals:
            stack.callback(rival.close)
            if rival.problem:
                console.print(f"without {rival.name}: {rival.problem}")
        figures = figures_of(report, milliseconds([rival for rival in rivals if not rival.problem], given.rounds))
    show(figures, console)
    if given.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
