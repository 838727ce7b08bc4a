"""By which a machine knows the compiled packages that it made itself.

A compiled package is native code: loading it runs it, and a hash in a manifest that came along with it proves nothing.
So whoever compiles a package seals it with a key that stays on the machine (HMAC-SHA256), and whoever loads it asks
for the seal. Machines that shall trust each other's packages share the key file, which SHARDLINE_KEY_FILE names
where it is not in its usual place.
"""

import hashlib
import hmac
import json
import os
import secrets
import tempfile
from pathlib import Path
from typing import Final

from worker.errors import Unsupported

DEFAULT_KEY: Final = Path("~/.config/shardline/key")
"""Or what SHARDLINE_KEY_FILE names."""
VARIABLE: Final = "SHARDLINE_KEY_FILE"
KEY_BYTES: Final = 32


def located(path: Path) -> Path:
    """`path`, or where the machine keeps its key instead of the default one. Raises Unsupported."""
    named = os.environ.get(VARIABLE, "") if path == DEFAULT_KEY else ""
    if named and not Path(named).is_absolute():
        raise Unsupported(
            f"{VARIABLE}: expected the key file's absolute path, got {named!r}; set it to one, or unset it for "
            f"{DEFAULT_KEY}"
        )
    return Path(named) if named else path.expanduser()


def read_key(path: Path) -> bytes | None:
    """The machine's key; None where it has none.

    Raises:
        Unsupported: others may read or change the file, it is not a key, or SHARDLINE_KEY_FILE is no path.
    """
    path = located(path)
    if not path.is_file():
        return None
    status = path.stat()
    if status.st_mode & 0o077 or status.st_uid != os.getuid():
        raise Unsupported(f"{path}: others can read or change this key; chmod 600 it, or remove it and compile again")
    key = path.read_bytes()
    if len(key) != KEY_BYTES:
        raise Unsupported(f"{path}: {len(key)} bytes, a key has {KEY_BYTES}; remove it and compile again")
    return key


def make_key(path: Path) -> bytes:
    """The machine's key, made at first use with nobody else's access. Raises Unsupported."""
    path = located(path)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    key = secrets.token_bytes(KEY_BYTES)
    descriptor, name = tempfile.mkstemp(prefix=f"{path.name}.", dir=path.parent)
    temporary = Path(name)
    try:
        os.write(descriptor, key)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    try:
        os.link(temporary, path)  # unlike rename, this never replaces a key that another process has just made
    except FileExistsError:
        pass
    finally:
        temporary.unlink()
    return read_key(path) or key


def seal(key: bytes, *, sha256: str, device: str, instruction_set: str, torch: str) -> str:
    """The seal of a package: its content, and what it was compiled for."""
    sealed = json.dumps([sha256, device, instruction_set, torch]).encode()
    return hmac.new(key, sealed, hashlib.sha256).hexdigest()


def holds(found: str, expected: str) -> bool:
    """Compares two seals in constant time."""
    return hmac.compare_digest(found, expected)
