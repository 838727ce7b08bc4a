"""Shows long steps: a moving line on a terminal, and else a line a step, so that a log reads well too."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.status import Status

Say = Callable[[str], None]
"""Told what happens, a line at a time."""


@contextmanager
def steps(first: str) -> Iterator[Say]:
    """Tells of `first`, then of each step that the yielded function is told of, with the seconds the last one took."""
    console = Console(file=sys.stderr, highlight=False)
    began = time.monotonic()
    current = first

    def finish() -> None:
        console.print(f"{current} ({time.monotonic() - began:.1f} s)", markup=False, soft_wrap=True)

    def begin(step: str) -> None:
        nonlocal began, current
        finish()
        began, current = time.monotonic(), step
        show(step)

    with Status(first, console=console) as spinner:

        def show(step: str) -> None:
            if console.is_terminal:
                spinner.update(step)
            else:
                console.print(f"{step} …", markup=False, soft_wrap=True)

        show(first)
        yield begin
        finish()


def lines() -> Say:
    """Plain lines on the standard error that this process has now, whatever a library turns it to later."""
    stream = sys.stderr

    def say(text: str) -> None:
        stream.write(text + "\n")
        stream.flush()

    return say
