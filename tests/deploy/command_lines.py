"""The command lines in `deploy/`, read by the programs that will get them."""

import shlex
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from gateway.__main__ import parse
from gateway.settings import GatewaySettings
from shardline.cli import parser

JOINED_BY: Final = {"&&", ";"}
SHELL_WORDS: Final = {"until", "do", "done", "exec", "!"}
SWITCHES: Final = ("include-dashboard", "include-log-monitor", "log-color")
"""Options of `ray start` that KubeRay writes with their value, although it is true or false."""


def of_script(script: str) -> Iterator[list[str]]:
    """Each command of a shell script that joins them by `&&` or `;`. Compose's `$$` is the shell's `$`."""
    words = shlex.shlex(script.replace("$$", "$"), posix=True, punctuation_chars=True)
    words.whitespace_split = True
    command: list[str] = []
    for word in [*words, ";"]:
        if word not in JOINED_BY:
            command += [] if not command and word in SHELL_WORDS else [word]
        elif command:
            yield command
            command = []


def of_container(command: Sequence[str]) -> Iterator[list[str]]:
    if list(command[:2]) == ["sh", "-c"]:
        yield from of_script(command[2])
    else:
        yield list(command)


def find(command: Sequence[str], *start: str) -> list[str]:
    """The arguments of the container's one command that starts so."""
    (found,) = (one[len(start) :] for one in of_container(command) if tuple(one[: len(start)]) == start)
    return found


def serve(arguments: Sequence[str]) -> Namespace:
    """As `shardline serve` reads them. Raises SystemExit."""
    return parser().parse_args(["serve", *arguments])


def gateway(arguments: Sequence[str]) -> GatewaySettings:
    """As `python -m gateway` reads them. Raises SystemExit."""
    return parse(list(arguments))[0]


def ray(command: str, arguments: Sequence[str]) -> dict[str, Any]:
    """As `ray COMMAND` reads them. Raises click's UsageError."""
    from ray.scripts.scripts import cli

    understood: dict[str, Any] = cli.commands[command].make_context(command, list(arguments)).params
    return understood


def kuberays_ray_start(params: Mapping[str, str], *, head: bool) -> list[str]:
    """What KubeRay makes of rayStartParams: true stands for a switch, false for none."""
    words = ["--head"] if head else ["--address=shardline-head-svc.shardline.svc.cluster.local:6379"]
    for name, value in {"block": "true", "metrics-export-port": "8080", **params}.items():
        if value in {"true", "false"} and name not in SWITCHES:
            words += [f"--{name}"] if value == "true" else []
        else:
            words.append(f"--{name}={value}")
    return words
