"""The trainings of a recipe, kept beside the artifact that they are for: one that was interrupted goes on."""

import math
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from torch import nn

from compressor.step import Training
from compressor.training.checkpoint import FileCheckpoint
from compressor.training.train import Course, Hook, Trained, train_

FOLDER: Final = ".training"
"""In the model's folder."""
_PARTS: Final = 10
"""Of an epoch: so often a training is kept."""


class KeptTrainings:
    """A `compressor.training.train.Trainer`: trains in this process, and keeps the n-th training that it is asked for
    as n.pt.

    `key`: of all that goes into the artifact; whatever has another key never goes on from here. `deadline`: by
    `time.monotonic()`, of all trainings; None: there is none.
    """

    def __init__(self, model: Path, key: str, deadline: float | None = None) -> None:
        self.folder = model / FOLDER / key[:16]
        self._deadline = math.inf if deadline is None else deadline
        self._count = 0

    def __call__(
        self,
        objective: nn.Module,
        data: Training,
        course: Course,
        *,
        hooks: Sequence[Hook] = (),
        seed: int = 0,
        device: str = "cpu",
        say: Callable[[str], None] = lambda _: None,
    ) -> Trained:
        checkpoint = FileCheckpoint(self.folder / f"{self._count}.pt")
        self._count += 1
        return train_(
            objective,
            data,
            course,
            hooks=hooks,
            seed=seed,
            device=device,
            say=say,
            checkpoint=checkpoint,
            every=max(1, len(data) // _PARTS),
            deadline=self._deadline,
        )

    def seconds_left(self) -> float | None:
        """Until the deadline; None: there is none."""
        return None if math.isinf(self._deadline) else max(0.0, self._deadline - time.monotonic())

    def any_kept(self) -> bool:
        """Whether there is a checkpoint to go on from."""
        return any(self.folder.rglob("*.pt"))

    def forget(self) -> None:
        """Removes what was kept: the artifact is written, or nothing can go on from here."""
        shutil.rmtree(self.folder, ignore_errors=True)
        if self.folder.parent.is_dir() and not any(self.folder.parent.iterdir()):
            self.folder.parent.rmdir()
