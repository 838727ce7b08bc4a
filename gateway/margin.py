"""How far predictions of an answer's time can be trusted: additive increase, multiplicative decrease (Chiu and Jain,
1989) of the share of its deadline that a request's expected time may take. Pure; times are monotonic seconds.
"""

from typing import Final

LEAST: Final = 0.2
MOST: Final = 0.95
"""What is expected at the very end of its deadline comes late as often as not."""
_CUT: Final = 0.85
_REGAINED_A_SECOND: Final = 0.03


class Margin:
    """`share`, from `LEAST` to `MOST`: of its deadline, that an answer may be expected to take."""

    __slots__ = ("_cut_until", "_told_at", "share")

    def __init__(self) -> None:
        self.share = MOST
        self._cut_until = float("-inf")
        self._told_at = float("-inf")

    def missed(self, now: float, took_s: float) -> None:
        """An admitted request took `took_s`, and that was too long. Those admitted before a cut do not cut again."""
        if now >= self._cut_until:
            self.share = max(LEAST, _CUT * self.share)
            self._cut_until = now + took_s
        self._told_at = now

    def in_time(self, now: float) -> None:
        since = min(1.0, max(0.0, now - self._told_at))
        self.share = min(MOST, self.share + _REGAINED_A_SECOND * since)
        self._told_at = now
