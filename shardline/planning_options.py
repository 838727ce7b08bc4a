"""The options of `shardline profile` and `shardline plan`."""

import argparse
import math
import re
from collections.abc import Callable
from pathlib import Path

from gateway.flags import whole

Run = Callable[[argparse.Namespace], int]
Command = Callable[[str, Run, str, str], argparse.ArgumentParser]

_COUNT = whole(1, 1_000_000)
_UNITS = {"": 1.0, "s": 1.0, "ms": 1e-3, "us": 1e-6}


def planning_commands(command: Command) -> None:
    """Adds both to the command line."""
    _profile_options(
        command(
            "profile",
            _profile,
            "Measure a model's steps, stages, cuts and memory on this machine.",
            "shardline profile models/encoder",
        )
    )
    _plan_options(
        command(
            "plan",
            _plan,
            "Work out how to run models on nodes, from what was measured of them.",
            "shardline plan models/encoder --rate 200 --p99 100ms --nodes nodes.yaml",
        )
    )


def _profile_options(profile: argparse.ArgumentParser) -> None:
    profile.add_argument("model", type=Path, metavar="FOLDER", help="models/NAME/1, or models/NAME for the newest")
    profile.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")
    profile.add_argument(
        "--as", dest="label", type=label, metavar="LABEL", help="the nodes file's name of it (default: cpu or cuda)"
    )
    profile.add_argument("--rows", type=_COUNT, nargs="+", metavar="N", help="rows of a batch (default: 1 to 32)")
    profile.add_argument("--lengths", type=_COUNT, nargs="+", metavar="N", help="of other axes (default: 16 to 128)")
    profile.add_argument(
        "--threads",
        type=_COUNT,
        nargs="+",
        metavar="N",
        help="of a stage (default: 1, doubling up to all cores)",
    )
    profile.add_argument("--runtime", choices=["fastest", "eager"], default="fastest", help="eager: uncompiled")
    profile.add_argument("--json", action="store_true", help="for machines: the profile as one JSON object")


def _plan_options(plan: argparse.ArgumentParser) -> None:
    plan.add_argument(
        "models",
        type=model_and_rate,
        nargs="+",
        metavar="FOLDER[=RATE]",
        help="models/NAME; with its own rate where several share the nodes",
    )
    goal = plan.add_mutually_exclusive_group()
    goal.add_argument("--max-throughput", action="store_true", help="as much as the nodes give")
    goal.add_argument("--min-nodes", action="store_true", help="the rate on the fewest nodes (default: fewest cores)")
    plan.add_argument("--rate", type=_positive, metavar="N", help="requests a second of each model without its own")
    plan.add_argument(
        "--p99",
        type=name_and_time,
        action="append",
        default=[],
        metavar="[NAME=]TIME",
        help="99 of 100 answers within it: 100ms for all models; NAME=50ms for one, as often as there are models",
    )
    plan.add_argument("--nodes", type=Path, metavar="FILE", help="the machines (default: this one)")
    plan.add_argument("--lengths", type=span, metavar="A-B", help="of requests (default: the middle one profiled)")
    plan.add_argument(
        "--variation",
        type=_positive,
        default=1.0,
        metavar="CV",
        help="of the times between requests: 1 Poisson, more: bursts (default: 1)",
    )
    plan.add_argument("--callers", type=_COUNT, metavar="N", help="clients, each waiting for its answer, at most")
    plan.add_argument("--stages", type=_COUNT, metavar="N", help="so many and no other")
    plan.add_argument("--any-cut", action="store_true", help="not only the cuts that are packaged")
    plan.add_argument(
        "--gateways",
        type=_COUNT,
        default=1,
        metavar="N",
        help="gateway processes on the first nodes (default: 1)",
    )
    plan.add_argument("--write", action="store_true", help="put it into each model.yaml")
    plan.add_argument("--json", action="store_true", help="for machines: the plan as one JSON object")


def _profile(given: argparse.Namespace) -> int:
    from shardline.profiling import run  # noqa: PLC0415

    return run(
        given.model,
        device=given.device,
        label=given.label,
        rows=given.rows,
        lengths=given.lengths,
        threads=given.threads,
        runtime=given.runtime,
        as_json=given.json,
    )


def _plan(given: argparse.Namespace) -> int:
    from shardline.planning import PlanSettings, run  # noqa: PLC0415

    settings = PlanSettings(
        models=tuple(given.models),
        rate=given.rate,
        p99_s=tuple(given.p99),
        max_throughput=given.max_throughput,
        min_nodes=given.min_nodes,
        nodes=given.nodes,
        lengths=given.lengths,
        variation=given.variation,
        callers=given.callers,
        stages=given.stages,
        any_cut=given.any_cut,
        gateways=given.gateways,
        write=given.write,
    )
    return run(settings, as_json=given.json)


def model_and_rate(text: str) -> tuple[Path, float | None]:
    """FOLDER or FOLDER=RATE."""
    folder, equals, rate = text.rpartition("=")
    if not equals:
        return Path(text), None
    return Path(folder), _positive(rate)


def name_and_time(text: str) -> tuple[str | None, float]:
    """TIME or NAME=TIME, in seconds."""
    name, equals, time = text.rpartition("=")
    if equals and not name:
        raise argparse.ArgumentTypeError(f"{text!r} is neither TIME nor NAME=TIME")
    return name or None, duration(time)


def duration(text: str) -> float:
    """100ms, 0.5s, 2 (seconds) in seconds."""
    match = re.fullmatch(r"(\d+\.?\d*|\.\d+)(s|ms|us|)", text)
    seconds = float(match[1]) * _UNITS[match[2]] if match else 0.0
    if not 0 < seconds <= 86_400:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time such as 100ms or 0.5s, up to a day")
    return seconds


def span(text: str) -> tuple[int, int]:
    """A-B, or one number, as shortest and longest."""
    match = re.fullmatch(r"(\d{1,7})(?:-(\d{1,7}))?", text)
    low, high = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= low <= high:
        raise argparse.ArgumentTypeError(f"{text!r} is not a length such as 64, or a range such as 8-128")
    return low, high


def label(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a name of letters, digits, '.', '_' and '-'")
    return text


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return value
