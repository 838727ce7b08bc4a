"""When a second replica is asked too, because the first takes longer than nearly all do (Dean and Barroso, "The Tail at
Scale", 2013). Pure.
"""

import math
from collections import deque
from typing import Final

from worker.allowance import Allowance

QUANTILE: Final = 0.95
_REMEMBERED: Final = 512
_LOOK_EVERY: Final = 64
"""The delay is worked out anew after so many answers, and first known after as many."""


class Hedging:
    """`share`: of the calls, at most so many are sent twice; up to `at_once` more in a bad moment.

    delay_s: a call that is unanswered for so long may be sent to a second replica; infinite until enough were seen.
    """

    def __init__(self, share: float, at_once: int = 8) -> None:
        self.delay_s = math.inf
        self._allowance = Allowance(share, max(1.0, at_once))
        self._latencies: deque[float] = deque(maxlen=_REMEMBERED)
        self._seen = 0

    def took(self, seconds: float) -> None:
        """A call was answered after `seconds`, by whichever replica was first."""
        self._allowance.earn()
        self._latencies.append(seconds)
        self._seen += 1
        if self._seen % _LOOK_EVERY == 0:
            ordered = sorted(self._latencies)
            self.delay_s = ordered[int(QUANTILE * (len(ordered) - 1))]

    def may_hedge(self) -> bool:
        """Whether one more call may be sent twice; it counts as sent then."""
        return self._allowance.take()
