"""The options of `shardline tune`."""

import argparse
import math
import re
from collections.abc import Callable
from pathlib import Path

from gateway.flags import whole
from worker.cores import cores

Run = Callable[[argparse.Namespace], int]
Command = Callable[[str, Run, str, str], argparse.ArgumentParser]

_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}


def tune_command(command: Command) -> None:
    """Adds it to the command line."""
    tune = command(
        "tune",
        _tune,
        "Find the fastest way to run a model that loses no more accuracy than allowed, and prove it.",
        "shardline tune models/source --evaluate spearman --data dev.csv --calibration train.csv --max-drop 0.5 "
        "--objective latency@8x64 --time-limit 20m --out models/encoder",
    )
    tune.add_argument("source", metavar="SOURCE", help="module:function, a Hugging Face folder, or a .pt2 file")
    tune.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="the model's folder: models/NAME")
    _accuracy_options(tune.add_argument_group("accuracy"))
    _search_options(tune.add_argument_group("search"))
    tune.add_argument("--json", action="store_true", help="for machines: the report as one JSON object")


def _accuracy_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--evaluate",
        required=True,
        metavar="HOW",
        help="accuracy, spearman, perplexity, or module:function(run, columns) → one number a record, more is better",
    )
    group.add_argument(
        "--data",
        type=Path,
        required=True,
        metavar="FILE",
        help="held-out records that judge: .csv .tsv .jsonl .npz. Columns: accuracy takes each input of the model, or "
        "text, and label; spearman sentence1, sentence2, score; perplexity each input; a function any",
    )
    group.add_argument(
        "--calibration",
        type=Path,
        metavar="FILE",
        help="other records, by which the search decides (default: a third of --data, which then does not judge)",
    )
    group.add_argument(
        "--drop-overlap", action="store_true", help="leave out calibration records that are also in --data"
    )
    group.add_argument(
        "--max-drop", required=True, metavar="DROP", help="0.5: in the figure's unit (points); 1%%: of its value"
    )


def _search_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--objective",
        default="latency",
        metavar="WHAT",
        help="latency@8x64 (rows x length), throughput@8x64, size or memory (default: %(default)s, of one row)",
    )
    group.add_argument("--device", default="cpu", help="that it will run on: cpu, cuda or cuda:N (default: cpu)")
    group.add_argument(
        "--time-limit",
        type=duration,
        metavar="TIME",
        help="after it nothing more is tried: 90s, 20m, 2h (default: none)",
    )
    group.add_argument(
        "--treatments",
        type=Path,
        metavar="FILE",
        help="what may be done to layers, best guess first (YAML): each a step, or a list of steps, without layers",
    )
    group.add_argument(
        "--training",
        metavar="DATA",
        help="what treatments that train (fine_tune, distill) learn from: records as in --data with a column label, or "
        "module:function",
    )
    group.add_argument(
        "--stages",
        type=whole(1, 1024),
        nargs="+",
        default=[1],
        metavar="N",
        help="numbers of stages to cut and compile for; model.yaml serves the first (default: 1)",
    )
    group.add_argument("--seed", type=whole(0, 2**31 - 1), default=0, metavar="N", help="default: %(default)s")
    group.add_argument(
        "--workers",
        type=whole(0, 1024),
        default=cores(),
        metavar="N",
        help="trials side by side, as Ray tasks, and never while something is timed; 0: one after the other, without "
        "Ray (default: %(default)s)",
    )
    group.add_argument("--address", metavar="ADDRESS", help="of a running Ray cluster (default: an embedded one)")
    group.add_argument("--runtime", choices=["fastest", "eager"], default="fastest", help="eager: compile nothing")
    group.add_argument("--keep", action="store_true", help="keep the trials of a search that has ended")


def duration(text: str) -> float:
    """ "20m" as seconds."""
    match = re.fullmatch(r"(\d{1,6}(?:\.\d+)?)([smh]?)", text)
    seconds = float(match[1]) * _UNITS[match[2]] if match else math.nan
    if not 1 <= seconds <= 30 * 86400:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time from 1s to 720h, such as 90s, 20m or 2h")
    return seconds


def _tune(given: argparse.Namespace) -> int:
    from shardline.tuning import run  # noqa: PLC0415 -- torch takes seconds

    return run(given)
