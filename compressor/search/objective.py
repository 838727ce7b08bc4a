"""What a search makes small: seconds of a batch, bytes on disk, or resident memory."""

import re
from dataclasses import dataclass, replace
from typing import Final, Literal

from compressor.model import Model
from compressor.step import nearest
from worker.errors import InvalidRequest
from worker.nouns import BATCH

Kind = Literal["latency", "throughput", "size", "memory"]

EXPECTED: Final = "expected latency, latency@BATCH, latency@BATCHxLENGTH, throughput@BATCHxLENGTH, size or memory"
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
    """rows: of the batch that is timed. length: of every other dynamic axis in it. given: how many of the two were
    asked for; what was not is a default, which is fitted into the model's bounds.

    Throughput is rows by the seconds of a batch on one thread, so it is the same search as latency, told otherwise.
    """

    kind: Kind
    rows: int = 1
    length: int = DEFAULT_LENGTH
    given: int = 2

    @property
    def timed(self) -> bool:
        return self.kind in {"latency", "throughput"}

    def sizes(self, model: Model) -> dict[str, int]:
        """The size of each of the model's named axes: within its bounds, as near as can be to what was asked for."""
        bounds = {axis.name: axis for axis in model.axes}
        names = dict.fromkeys(name for item in model.inputs for name in item.axes if name is not None)
        found: dict[str, int] = {}
        for name in names:
            wanted = self.rows if name == BATCH else self.length
            axis = bounds.get(name)
            found[name] = wanted if axis is None else axis.nearest(wanted)
        return found

    def fitted(self, model: Model) -> "Objective":
        """As it is timed.

        Raises:
            InvalidRequest: a size that was asked for is out of its axis' bounds, or the model has no axis for it.
        """
        if not self.timed:
            return self
        sizes = self.sizes(model)
        others = [name for name in sizes if name != BATCH]
        if self.given >= 1 and self.rows > 1 and BATCH not in sizes:
            raise InvalidRequest(
                f"objective {self._asked()!r}: the model has no axis {BATCH!r}, so no batch of {self.rows}; say "
                f"{self.kind}{f'@1x{self.length}' if self.given == 2 and others else ''}"
            )
        if self.given == 2 and not others:
            raise InvalidRequest(
                f"objective {self._asked()!r}: the model has no axis beside the batch that a length of {self.length} "
                f"would be of; say {self.kind}@{self.rows}"
            )
        for axis in model.axes:
            wanted, given = (self.rows, self.given >= 1) if axis.name == BATCH else (self.length, self.given == 2)
            if given and sizes.get(axis.name, wanted) != wanted:
                bounds = f"at least {axis.minimum}" if axis.maximum is None else f"{axis.minimum} to {axis.maximum}"
                raise InvalidRequest(
                    f"objective {self._asked()!r}: the model's axis {axis.name!r} takes {bounds}, not {wanted}; ask "
                    "for a size that it takes"
                )
        return replace(self, rows=sizes.get(BATCH, 1))

    def told(self, model: Model) -> str:
        """What is timed: "latency@8x64", or "latency@8" where the model has no axis beside the batch."""
        sizes = self.sizes(model)
        if not self.timed or not sizes:
            return self.kind
        return f"{self.kind}@{'x'.join(map(str, [sizes.pop(BATCH, 1), *sizes.values()]))}"

    def _asked(self) -> str:
        return self.kind + ("", f"@{self.rows}", f"@{self.rows}x{self.length}")[self.given]


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
    return Objective(kind, rows, length, given=sum(size is not None for size in match.groups()[1:]))
