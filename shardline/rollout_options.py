"""The options of `shardline rollout`, `rollback` and `history`."""

import argparse
from collections.abc import Callable

from gateway.flags import seconds

Run = Callable[[argparse.Namespace], int]
AddCommand = Callable[[str, Run, str, str], argparse.ArgumentParser]


def rollout_commands(command: AddCommand) -> tuple[argparse.ArgumentParser, ...]:
    """Adds them; returns their parsers."""
    rollout = command(
        "rollout",
        _rollout,
        "Serve a model as its model.yaml says now: another version, or another plan.",
        "shardline rollout minilm --canary 10 --wait 300",
    )
    rollout.add_argument("model", metavar="MODEL", help="its name, as `shardline status` shows it")
    rollout.add_argument("--version", type=_number, metavar="N", help="this version (default: what model.yaml says)")
    rollout.add_argument(
        "--canary",
        type=_percent,
        default=100,
        metavar="PERCENT",
        help="of the requests at first (default: all at once)",
    )
    rollout.add_argument(
        "--watch-for", type=seconds, default=30.0, metavar="SECONDS", help="watch the canary so long (default: 30)"
    )
    rollout.add_argument(
        "--within", type=seconds, default=600.0, metavar="SECONDS", help="to come up, else take it back (default: 600)"
    )
    rollout.add_argument(
        "--even-without-room", action="store_true", help="also where no node is large enough: Ray may add one"
    )
    rollback = command("rollback", _rollback, "Serve a model as it was before.", "shardline rollback minilm --wait 300")
    rollback.add_argument("model", metavar="MODEL", help="its name, as `shardline status` shows it")
    rollback.add_argument(
        "--to", type=_number, default=0, metavar="REVISION", help="of `shardline history` (default: the one before)"
    )
    history = command("history", _history, "Show what served, and why it changed.", "shardline history minilm")
    history.add_argument("model", nargs="?", default="", metavar="MODEL", help="this one alone (default: every model)")
    history.add_argument("--json", action="store_true", help="for machines: the same facts as one JSON list")
    for added in (rollout, rollback):
        added.add_argument(
            "--wait",
            type=seconds,
            default=0.0,
            metavar="SECONDS",
            help="wait so long until it is so (default: do not)",
        )
    return rollout, rollback, history


def _number(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) < 10**9:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def _percent(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 100:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of percent from 1 to 100")
    return int(text)


def _rollout(given: argparse.Namespace) -> int:
    from shardline.rollouts import RolloutSettings, rollout  # noqa: PLC0415

    settings = RolloutSettings(
        version=given.version,
        canary=given.canary,
        watch_s=given.watch_for,
        within_s=given.within,
        even_without_room=given.even_without_room,
        wait_s=given.wait,
    )
    return rollout(given.state_dir, given.model, settings)


def _rollback(given: argparse.Namespace) -> int:
    from shardline.rollouts import rollback  # noqa: PLC0415

    return rollback(given.state_dir, given.model, given.to, wait_s=given.wait)


def _history(given: argparse.Namespace) -> int:
    from shardline.rollouts import history  # noqa: PLC0415

    return history(given.state_dir, given.model, as_json=given.json)
