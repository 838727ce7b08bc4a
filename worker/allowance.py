"""How much more than its calls a link may send: a token bucket without a clock, filled by the calls themselves."""


class Allowance:
    """`share` of an extra call is earned with each call, up to `most`, which is there at the start too."""

    __slots__ = ("_left", "_most", "_share")

    def __init__(self, share: float, most: float) -> None:
        self._share = share
        self._most = most
        self._left = most

    def earn(self) -> None:
        self._left = min(self._most, self._left + self._share)

    def take(self) -> bool:
        """Whether one extra call may be made; it counts as made then."""
        if self._left < 1:
            return False
        self._left -= 1
        return True
