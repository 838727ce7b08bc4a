"""Where the controller's state lies, and which controller may change it.

A controller *claims* the store when it starts and gets an *epoch*, higher than any before. From then on whoever claimed
earlier is refused: its writes fail, and so do its checks before it acts. So two controllers never act at once, however
one of them was frozen, cut off or forgotten (a fencing token: Kleppmann, "How to do distributed locking", 2016).
"""

import fcntl
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from cluster.state import State, StateDir, StateError, write_private, writing
from worker.errors import ShardlineError


class Superseded(ShardlineError):
    """Another controller has claimed the store since: this one must do nothing more."""


class Store(Protocol):
    """Calls take milliseconds."""

    @property
    def id(self) -> str:
        """Made by chance at the first claim of all: epochs of a store of another id say nothing about this one's."""
        ...

    def claim(self) -> int:
        """From now on only the caller may write. Returns its epoch. Raises StateError."""
        ...

    def check(self) -> None:
        """Raises Superseded."""
        ...

    def read_state(self) -> State:
        """Raises StateError."""
        ...

    def write_state(self, state: State) -> None:
        """Raises Superseded, StateError."""
        ...


def a_store_id() -> str:
    return secrets.token_hex(8)


class FileStore:
    """In the state dir: for one machine, or a folder that the machines share."""

    def __init__(self, state_dir: StateDir) -> None:
        self._state_dir = state_dir
        self._epoch = 0
        self.id = ""

    def claim(self) -> int:
        with self._locked():
            epoch, self.id = self._read_epoch()
            self.id = self.id or a_store_id()
            self._epoch = epoch + 1
            write_private(self._state_dir.epoch_file, f"{self._epoch} {self.id}")
        return self._epoch

    def check(self) -> None:
        now, _ = self._read_epoch()
        if now != self._epoch:
            raise Superseded(f"controller {now} has taken over from controller {self._epoch}")

    def read_state(self) -> State:
        return self._state_dir.read_state()

    def write_state(self, state: State) -> None:
        with self._locked():
            self.check()
            self._state_dir.write_state(state)

    def _read_epoch(self) -> tuple[int, str]:
        """The newest epoch, and the store's id, which lie together: who loses one has lost the other."""
        path = self._state_dir.epoch_file
        try:
            text = path.read_text()
        except FileNotFoundError:
            return 0, ""
        except OSError as error:
            raise StateError(f"{path}: cannot be read: {error.strerror}") from error
        number, _, store_id = text.partition(" ")
        if not number.isdecimal():
            raise StateError(f"{path}: holds no number; remove it while no controller runs")
        return int(number), store_id

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Held for the moment of a write; a process that dies lets go of it."""
        path = self._state_dir.epoch_file.with_suffix(".lock")
        with writing(path):
            lock = path.open("w")
        with lock as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
