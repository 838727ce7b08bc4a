"""A handler that fails in the worker that it is told to fail in: operator's code that is broken on one machine.

It also records which requests it saw (`tests.chaos.seen`).
"""

import os
import struct
from collections.abc import Sequence
from pathlib import Path

from tests.chaos.seen import BEGUN, COMPUTED, Recorder
from worker.nouns import Signature, Tensor, TensorSpec

NAME = "tests.chaos.faults:Faulty"
_SPEC = TensorSpec("input", "FP32", ("batch", "width"))
_GIVEN = TensorSpec("output", "FP32", ("batch", "width"))


def fault_file(models: Path, pid: int) -> Path:
    """While it exists, the worker with this process id fails on every request."""
    return models.parent / "faults" / str(pid)


class Faulty:
    """Passes everything through. Runs in the workers of the first stage, to which the answers come back."""

    signature = Signature((_SPEC,), (_GIVEN,))

    def __init__(self, assets: Path) -> None:
        models = assets.parents[2]
        self._fault = fault_file(models, os.getpid())
        self._begun, self._computed = Recorder(BEGUN), Recorder(COMPUTED)

    def before(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        if self._fault.exists():
            raise RuntimeError("a broken machine")
        self._begun.saw(int(first_value(tensors)))
        return tuple(tensors)

    def after(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        self._computed.saw(int(first_value(tensors) - 15) // 16)  # the model's answer is 16 times the number, plus 15
        return tuple(tensors)


def first_value(tensors: Sequence[Tensor]) -> float:
    return float(struct.unpack_from("<f", tensors[0].data)[0])
