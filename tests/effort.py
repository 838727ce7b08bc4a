"""How much Python a piece of code runs, told in lines: unlike its time, a busy machine does not change it.

What is done in C is not counted, nor what other threads do.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class Effort:
    lines = 0

    def trace(self, _frame: FrameType, event: str, _what: Any) -> Any:
        self.lines += event == "line"
        return self.trace


@contextmanager
def counted() -> Iterator[Effort]:
    """Counts the lines that this thread runs within, also those of tasks that began before."""
    effort, before = Effort(), sys.gettrace()
    sys.settrace(effort.trace)
    try:
        yield effort
    finally:
        sys.settrace(before)
