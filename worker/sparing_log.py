"""Tells of what may happen with every request, but not with every request."""

import logging
import time
from typing import Final

EVERY_S: Final = 10.0


class SparingLog:
    """Writes the first failure with its traceback, then one in `EVERY_S` seconds, with the number of those between."""

    def __init__(self, logger: logging.Logger, what: str) -> None:
        self._logger = logger
        self._what = what
        self._next = float("-inf")
        self._untold = 0

    def failed(self, error: BaseException, now: float | None = None) -> None:
        """`now`: on the monotonic clock; None: asks it."""
        now = time.monotonic() if now is None else now
        if now < self._next:
            self._untold += 1
            return
        since = f" ({self._untold} times more since this was last told)" if self._untold else ""
        self._logger.error("%s%s", self._what, since, exc_info=error)
        self._next, self._untold = now + EVERY_S, 0
