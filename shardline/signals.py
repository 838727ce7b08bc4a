"""Ctrl-C and SIGTERM: the first asks to drain, the second forces; for what cannot drain, SIGTERM is a Ctrl-C."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import psutil


class StopAsked(Exception):
    """The first signal came before there was anything to drain."""


class Forced(BaseException):
    """The second signal: skip every wait, only clean up. Not an Exception, so that nothing handles it by mistake."""


ONE_WISH_S = 0.5
"""Signals that come so close together are one wish: a terminal and whoever started us may both send it."""


class StopSignals:
    """Asked once: `asked` is set. Asked twice: Forced is raised in the main thread."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self._asked_at = float("-inf")
        self._forced = False

    @contextmanager
    def installed(self) -> Iterator["StopSignals"]:
        """Main thread only. After Forced, further signals are ignored for good: the process is about to end."""
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.getsignal(number) for number in numbers}
        self.install()
        try:
            yield self
        finally:
            if not self._forced:
                for number, handler in before.items():
                    signal.signal(number, handler)

    def install(self) -> None:
        """Again after a library put its own handlers in place."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)

    def check(self) -> None:
        """Raises StopAsked after the first signal."""
        if self.asked.is_set():
            raise StopAsked

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        now = time.monotonic()
        if not self.asked.is_set():
            self._asked_at = now
            self.asked.set()
        if now - self._asked_at < ONE_WISH_S:
            return
        self._forced = True
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_IGN)
        raise Forced


@contextmanager
def sigterm_as_ctrl_c() -> Iterator[None]:
    """SIGTERM does what Ctrl-C does in a terminal: children get it too, such as a compiler. Main thread only."""

    def interrupt(_: int, frame: FrameType | None) -> None:
        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                child.send_signal(signal.SIGINT)
        handler = signal.getsignal(signal.SIGINT)  # a library may have its own for a while
        if callable(handler):
            handler(signal.SIGINT, frame)
        else:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
