"""The artifacts that this node fetched, each by the hash of its manifest. What is not used goes in time.

The node's workers know of each other by locks on files: one is held by who changes an artifact's folder, the other by
all who use it. A process that dies lets go.
"""

import fcntl
import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from worker.errors import Unavailable

KEPT_BYTES: Final = 20 * 2**30
"""Beyond so much, what no worker uses is removed."""
WITHIN_S: Final = 3600.0
"""Longest that a worker waits for its turn."""
PART: Final = ".part"
"""Ends the name of a folder that is not whole yet."""

logger = logging.getLogger(__name__)


class ArtifactCache:
    """In `folder`, which is made where it is missing."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = folder

    def place(self, manifest: str) -> Path:
        """Where the artifact is, if it was fetched."""
        return self._folder / manifest

    @contextmanager
    def alone(self, manifest: str) -> Iterator[None]:
        """Nobody else of this node changes the artifact's folder meanwhile. Raises Unavailable where one takes long."""
        until = time.monotonic() + WITHIN_S
        lock = self._folder / f"{manifest}.lock"
        with lock.open("a") as file:
            while not _locked(file.fileno(), fcntl.LOCK_EX):
                if time.monotonic() > until:
                    raise Unavailable(f"{lock}: another worker holds it for over {WITHIN_S:g} s")
                time.sleep(0.1)
            yield

    @contextmanager
    def used(self, manifest: str) -> Iterator[None]:
        """Nobody removes the artifact to make room meanwhile. To be entered `alone`."""
        with self._uses(manifest).open("a") as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            os.utime(file.fileno())
            yield

    def prune(self, keep_bytes: int) -> None:
        """Removes what nobody uses, what was taken into use longest ago first, until all takes up to `keep_bytes`."""
        with self.alone("prune"):
            folders = sorted((one for one in self._folder.iterdir() if one.is_dir()), key=self._used_at)
            sizes = {folder: _size(folder) for folder in folders}
            for folder in folders:
                if sum(sizes.values()) <= keep_bytes:
                    return
                if self._remove_unused(folder):
                    logger.info("removed %s, which nobody uses, to make room", folder)
                    del sizes[folder]

    def _remove_unused(self, folder: Path) -> bool:
        manifest = folder.name.removesuffix(PART)
        with (self._folder / f"{manifest}.lock").open("a") as lock, self._uses(manifest).open("a") as uses:
            free = _locked(lock.fileno(), fcntl.LOCK_EX) and _locked(uses.fileno(), fcntl.LOCK_EX)
            if free:
                shutil.rmtree(folder, ignore_errors=True)
            return free

    def _used_at(self, folder: Path) -> float:
        for path in (self._uses(folder.name.removesuffix(PART)), folder):
            with suppress(FileNotFoundError):
                return path.stat().st_mtime
        return 0.0

    def _uses(self, manifest: str) -> Path:
        return self._folder / f"{manifest}.uses"


def _locked(file: int, how: int) -> bool:
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _size(folder: Path) -> int:
    """Bytes. Others may change it meanwhile."""
    size = 0
    for base, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                size += os.lstat(os.path.join(base, name)).st_size
    return size
