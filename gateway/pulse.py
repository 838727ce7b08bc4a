"""Whether a gateway process stands still: its event loop beats, and the supervisor looks for new beats."""

import asyncio
import math
from collections.abc import Callable
from typing import Final

BEAT_S: Final = 0.5
LOOK_S: Final = 1.0
"""Between two looks of the supervisor: longer than between two beats, so that each look finds a new one."""


async def beat_forever(beat: Callable[[], None]) -> None:
    """Beats as often as the event loop that it runs on lets it."""
    while True:
        beat()
        await asyncio.sleep(BEAT_S)


class Vigil:
    """Looks every `LOOK_S` at how often one process has beaten.

    It counts looks and knows no clock: who could not look, being frozen itself, has seen no silence meanwhile.
    """

    def __init__(self, frozen_s: float) -> None:
        """`frozen_s`: a process without a beat for so long, and for two looks at least, stands still."""
        self._patience = max(2, math.ceil(frozen_s / LOOK_S))
        self._beats = -1
        self._silent_looks = 0

    def stands_still(self, beats: int) -> bool:
        """Takes one look: `beats` so far."""
        self._silent_looks = self._silent_looks + 1 if beats == self._beats else 0
        self._beats = beats
        return self._silent_looks >= self._patience
