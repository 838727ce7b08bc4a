"""The `shardline` command. Parses, calls the piece that does the work, and says what came of it.

Exit codes: 0 done; 1 it failed, and standard error says why; 2 the command line is wrong; 3 nothing serves for this
state dir; 130 forced by a second signal.
"""

import argparse
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from worker.errors import ShardlineError

EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_NOT_SERVING, EXIT_FORCED = 0, 1, 2, 3, 130

MODEL = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"


class NotServing(ShardlineError):
    """No serve owns the state dir."""


def main(arguments: Sequence[str] | None = None) -> int:
    given = parser().parse_args(arguments)
    try:
        code: int = given.run(given)
    except NotServing as error:
        sys.stderr.write(f"shardline: {error}\n")
        return EXIT_NOT_SERVING
    except ShardlineError as error:
        sys.stderr.write(f"shardline: {error}\n")
        return EXIT_FAILED
    except KeyboardInterrupt:
        return EXIT_FORCED
    except BrokenPipeError:
        sys.stdout = None  # type: ignore[assignment] -- who read our output has gone; there is nobody to tell
        return EXIT_FAILED
    return code


def parser() -> argparse.ArgumentParser:
    root = argparse.ArgumentParser(
        prog="shardline",
        description="Serve a PyTorch model as a pipeline of shards, over the Open Inference Protocol.",
        epilog="example: shardline package my.module:factory --out models/mine && shardline serve models/",
    )
    commands = root.add_subparsers(required=True, metavar="COMMAND")
    _add_package(commands)
    _add_serve(commands)
    _add_status(commands)
    _add_infer(commands)
    _add_scale(commands)
    _add_stop(commands)
    return root


Commands = "argparse._SubParsersAction[argparse.ArgumentParser]"


def _command(commands: Commands, name: str, summary: str, example: str) -> argparse.ArgumentParser:  # type: ignore[valid-type]
    return commands.add_parser(name, help=summary, description=summary, epilog=f"example: {example}")  # type: ignore[attr-defined,no-any-return]
