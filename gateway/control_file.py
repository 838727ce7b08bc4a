"""Where the controller is and the token that it asks for: a JSON file that only its owner may read.

    {"address": "127.0.0.1:43211", "token": "..."}

The controller's side writes it, anew when a restarted controller listens elsewhere.
"""

import json
import stat
from dataclasses import dataclass, field
from pathlib import Path

from worker.errors import ShardlineError


class ControlFileError(ShardlineError):
    """The file is missing, readable by others, or not what it should be."""


@dataclass(frozen=True, slots=True)
class Control:
    """`address`: host:port. `token`: the cluster's, for the controller and for the workers."""

    address: str
    token: str = field(repr=False)


def read_control_file(path: Path) -> Control:
    """Raises `ControlFileError`, which says how to mend it."""
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(path.stat().st_mode)
            content = file.read(65536)
    except OSError as error:
        raise ControlFileError(f"cannot read the control file {path}: {error.strerror}; is the cluster up?") from error
    if mode & 0o077:
        raise ControlFileError(f"{path} holds the cluster's token and others may read it: chmod 600 {path}")
    try:
        given = json.loads(content)
    except ValueError as error:
        raise ControlFileError(f"{path} is not JSON: {error}") from error
    if not isinstance(given, dict) or set(given) != {"address", "token"}:
        raise ControlFileError(f'{path}: expected an object with the keys "address" and "token", and no others')
    address, token = given["address"], given["token"]
    if not isinstance(address, str) or not address.rpartition(":")[0] or not address.rpartition(":")[2].isdecimal():
        raise ControlFileError(f'{path}: "address" is host:port')
    if not isinstance(token, str) or not token or not token.isascii() or not token.isprintable():
        raise ControlFileError(f'{path}: "token" is a line of printable ASCII, not empty')
    return Control(address, token)
