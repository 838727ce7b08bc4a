"""Where a training is kept, so that one that was interrupted goes on."""

import io
import pickle
from pathlib import Path
from typing import Any, Protocol

import torch

from worker.errors import InvalidRequest

State = dict[str, Any]
"""Numbers, text and tensors, in lists and mappings: what `torch.load` reads without running code."""


class Checkpoint(Protocol):
    """One place for the state of one training."""

    def read(self) -> State | None:
        """What was written last; None: nothing yet."""

    def write(self, state: State) -> None:
        """Replaces what is there, or leaves it as it was. Raises OSError: there is no room."""


class NoCheckpoint:
    """Keeps nothing."""

    def read(self) -> State | None:
        return None

    def write(self, state: State) -> None:
        del state


class FileCheckpoint:
    """A file, written beside its place and renamed, so that whoever reads it never sees half of one."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __str__(self) -> str:
        return str(self._path)

    def read(self) -> State | None:
        """What was written last.

        Raises:
            InvalidRequest: the file is not a checkpoint, or holds more than values.
        """
        if not self._path.is_file():
            return None
        try:
            state = torch.load(self._path, map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, OSError, ValueError, KeyError, pickle.UnpicklingError) as error:
            # torch's own message advises to load it without the check; that is left out here.
            raise InvalidRequest(f"{self._path}: is damaged, or holds more than values; remove it") from error
        if not isinstance(state, dict):
            raise InvalidRequest(f"{self._path}: expected a checkpoint, not a {type(state).__name__}; remove it")
        return state

    def write(self, state: State) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        partial = self._path.with_name(self._path.name + ".tmp")
        made = io.BytesIO()  # on a full disk, PyTorch's own writer of files ends the process
        torch.save(state, made)
        try:
            partial.write_bytes(made.getbuffer())
            partial.replace(self._path)
        except OSError:
            partial.unlink(missing_ok=True)
            raise
