"""A handler that fails in the worker that it is told to fail in: operator's code that is broken on one machine."""

import os
from collections.abc import Sequence
from pathlib import Path

from worker.nouns import Signature, Tensor, TensorSpec

NAME = "tests.chaos.faults:Faulty"
_SPEC = TensorSpec("input", "FP32", ("batch", "width"))
_GIVEN = TensorSpec("output", "FP32", ("batch", "width"))


def fault_file(models: Path, pid: int) -> Path:
    """While it exists, the worker with this process id fails on every request."""
    return models.parent / "faults" / str(pid)


class Faulty:
    """Passes everything through."""

    signature = Signature((_SPEC,), (_GIVEN,))

    def __init__(self, assets: Path) -> None:
        models = assets.parents[2]
        self._fault = fault_file(models, os.getpid())

    def before(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        if self._fault.exists():
            raise RuntimeError("a broken machine")
        return tuple(tensors)

    def after(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return tuple(tensors)
