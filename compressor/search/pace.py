"""How long each kind of work took, and so what a time limit leaves room for."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Literal

from compressor.search.store import Store, key_of

Kind = Literal["package", "look", "judge", "build", "timing"]
"""package: an artifact, made in this process. look: an artifact's answers on the held-out data. judge: a trial on the
calibration data. build: a trial's program. timing: several programs in turns.
"""

MARGIN: Final = 1.2
"""Work may take so many times as long as the longest of its kind did."""


@dataclass(frozen=True, slots=True)
class Costs:
    """Expected seconds of one of each kind; 0 where nothing tells yet."""

    package: float
    look: float
    judge: float
    build: float
    timing: float

    @property
    def whole(self) -> float:
        """Of one candidate that is built, timed and judged on calibration data."""
        return self.build + self.timing + self.judge

    @property
    def final(self) -> float:
        """Of one last word: the artifact is made and timed, and the held-out data are asked."""
        return self.package + self.timing + self.look


@dataclass(frozen=True, slots=True)
class Times:
    """When each phase ends, by `time.monotonic`, so that the next ones have their time."""

    wholes: float
    parts: float
    judged: float
    """When mixes are judged no more: what is left until `mixes` is for compiling and timing the best of them."""
    mixes: float


def times(limit: float, costs: Costs, *, width: int, mixes: int, finalists: int) -> Times:
    """Keeps one last word free from the beginning; while mixes are looked for, two: of a mix, and of what it must beat.

    width: trials side by side. mixes, finalists: so many are to be judged, and built, after single layers were.
    """
    final = MARGIN * costs.final
    judging = MARGIN * math.ceil(mixes / width) * costs.judge
    finishing = MARGIN * (math.ceil(finalists / width) * costs.build + costs.timing)
    ends = limit - 2 * final
    return Times(wholes=limit - final, parts=ends - finishing - judging, judged=ends - finishing, mixes=ends)


def next_wholes(waiting: int, left: float, one: float, width: int, *, first: bool) -> int:
    """How many of the waiting candidates are tried now, side by side. 0: no time is left for one that takes `one`.

    The first is tried in whatever time is left, as without it there is nothing to return; the uncompressed model is
    built beside it.
    """
    if left <= 0 or (left < one and not first):
        return 0
    room = max(1, width - 1) if first else width
    return min(waiting, room if left >= 2 * one else 1)


@dataclass(slots=True)
class Shares:
    """Seconds that works of one kind share evenly, one after the other; what one does not take, those after it have.

    left: for all that wait. waiting: how many.
    """

    left: float
    waiting: int

    def next(self, most: float) -> float:
        """Of the next one: no more than `most`."""
        return min(self.left / max(1, self.waiting), most)

    def took(self, seconds: float) -> None:
        """The next one took so many, and waits no more."""
        self.left = max(0.0, self.left - seconds)
        self.waiting -= 1


class Pace:
    """The longest that each kind of work took in this search, from what was measured now and before an interruption."""

    def __init__(self, store: Store, key: str, limit: float, width: int) -> None:
        self._store = store
        self._key = key
        self.limit = limit
        self.width = width
        self._longest: dict[Kind, float] = {}

    def note(self, kind: Kind, seconds: float) -> None:
        """A trial's; the store has them with the trial."""
        self._longest[kind] = max(seconds, self._longest.get(kind, 0.0))

    @contextmanager
    def clocked(self, kind: Kind) -> Iterator[None]:
        """Of work in this process. The first is stored: a search that goes on finds its artifact made."""
        key = key_of([self._key, "took", kind])
        known = self._store.get(key)
        began = time.monotonic()
        yield
        took = time.monotonic() - began
        if known is None:
            self._store.put(key, {"took_s": took})
        self.note(kind, max(took, known["took_s"] if known else 0.0))

    @property
    def costs(self) -> Costs:
        """A program is expected to take what an artifact does, until one was built."""
        longest = self._longest
        return Costs(
            package=longest.get("package", 0.0),
            look=longest.get("look", 0.0),
            judge=longest.get("judge", 0.0),
            build=longest.get("build", longest.get("package", 0.0)),
            timing=longest.get("timing", 0.0),
        )

    def times(self, *, mixes: int, finalists: int) -> Times:
        return times(self.limit, self.costs, width=self.width, mixes=mixes, finalists=finalists)
