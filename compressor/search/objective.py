"""What a search makes small: seconds of a batch, bytes on disk, or resident memory."""

import re
from dataclasses import dataclass
from typing import Final, Literal

from compressor.model import Model
from compressor.step import nearest
from worker.errors import InvalidRequest
from worker.nouns import BATCH

Kind = Literal["latency", "throughput", "size", "memory"]

EXPECTED: Final = "expected latency@BATCH, latency@BATCHxLENGTH, throughput@BATCHxLENGTH, size or memory"
DEFAULT_LENGTH: Final = 64

_FORM: Final = re.compile(r"([a-z]+)(?:@(\d{1,5})(?:x(\d{1,6}))?)?")
_KINDS: Final[dict[str, Kind]] = {
    "latency": "latency",
    "throughput": "throughput",
    "size": "size",
    "memory": "memory",
}


@dataclass(frozen=True, slots=True)
class Objective:
    """rows: of the batch that is timed. length: of every other dynamic axis in it.

    Throughput is rows by the seconds of a batch on one thread, so it is the same search as latency, told otherwise.
    """

    kind: Kind
    rows: int = 1
    length: int = DEFAULT_LENGTH

    @property
    def timed(self) -> bool:
        return self.kind in {"latency", "throughput"}

    def sizes(self, model: Model) -> dict[str, int]:
        """The size of each of the model's named axes."""
        bounds = {axis.name: axis for axis in model.axes}
        names = dict.fromkeys(name for item in model.inputs for name in item.axes if name is not None)
        found: dict[str, int] = {}
        for name in names:
            wanted = self.rows if name == BATCH else self.length
            axis = bounds.get(name)
            if axis is not None:
                wanted = max(axis.minimum, min(wanted, axis.maximum or wanted))
            found[name] = wanted
        return found

    def __str__(self) -> str:
        return f"{self.kind}@{self.rows}x{self.length}" if self.timed else self.kind


def read_objective(text: str) -> Objective:
    """Raises InvalidRequest: naming what is wrong in "latency@8x64"."""
    match = _FORM.fullmatch(text)
    if match is None:
        raise InvalidRequest(f"objective {text!r}: {EXPECTED}")
    kind = _KINDS.get(match[1])
    if kind is None:
        raise InvalidRequest(f"objective {text!r}: {EXPECTED}{nearest(match[1], _KINDS)}")
    timed = kind in {"latency", "throughput"}
    if not timed and match[2]:
        raise InvalidRequest(f"objective {text!r}: {kind} has no batch")
    rows, length = int(match[2] or 1), int(match[3] or DEFAULT_LENGTH)
    if rows < 1 or length < 1:
        raise InvalidRequest(f"objective {text!r}: batch and length start at 1")
    return Objective(kind, rows, length)
