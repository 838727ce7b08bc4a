"""A command on a terminal of its own: what a user sees, and what they press."""

import fcntl
import os
import re
import select
import struct
import subprocess
import termios
import time
from types import TracebackType
from typing import Self

import pytest

CTRL_C = "\x03"
ROWS, COLUMNS = 50, 160
WITHIN_S = 60.0
_ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in {"COLUMNS", "LINES"}}
_ENVIRONMENT |= {"TERM": "xterm-256color"}
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """`seen`: all that was written so far, without colours and movements of the cursor."""

    def __init__(self, *command: str) -> None:
        self._ours, theirs = os.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        # setsid makes the terminal the session's own, so that Ctrl-C becomes a signal to those who run on it.
        own = ["setsid", "--ctty", "--wait", *command]
        self._process = subprocess.Popen(own, stdin=theirs, stdout=theirs, stderr=theirs, env=_ENVIRONMENT)
        os.close(theirs)
        self._written = b""

    @property
    def seen(self) -> str:
        return _CONTROL.sub("", self._written.decode(errors="replace"))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self.press(CTRL_C)
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(10)
        os.close(self._ours)

    def press(self, keys: str) -> None:
        os.write(self._ours, keys.encode())

    def wait_for(self, pattern: str) -> None:
        until = time.monotonic() + WITHIN_S
        while not re.search(pattern, self.seen):
            if not self._read(until):
                pytest.fail(f"never seen: {pattern}; but: {self.seen[-2000:]}")

    def ended(self) -> int:
        """The exit code."""
        until = time.monotonic() + WITHIN_S
        while self._read(until):
            pass
        return self._process.wait(10)

    def _read(self, until: float) -> bool:
        """Reads what comes next; False where nothing does: the time is up, or nobody writes any more."""
        ready, _, _ = select.select([self._ours], [], [], max(0.0, until - time.monotonic()))
        if not ready:
            return False
        try:
            part = os.read(self._ours, 65536)
        except OSError:  # so Linux tells that the other end is closed
            return False
        self._written += part
        return bool(part)
