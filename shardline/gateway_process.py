"""The gateway as a child of `serve`: started, watched, drained, and never left behind."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gateway.settings import ServerLimits
from worker.errors import ShardlineError

POLL_S = 0.05
READY_WITHIN_S = 60.0
MARGIN_S = 10.0


class GatewayError(ShardlineError):
    """The gateway could not start; the message shows its last words."""


@dataclass(frozen=True, slots=True)
class GatewayBounds:
    """max_message_bytes: of one request. notice_s, finish_s: of its drain (see `gateway.settings`)."""

    max_message_bytes: int = ServerLimits().max_message_bytes
    notice_s: float = 1.0
    finish_s: float = 30.0


DEFAULT_BOUNDS: Final = GatewayBounds()


@dataclass(frozen=True, slots=True)
class GatewayPlace:
    """listen: host:port. control_file: where it finds the controller. folder: for its ready file and its log."""

    listen: str
    processes: int
    control_file: Path
    folder: Path
    bounds: GatewayBounds = DEFAULT_BOUNDS

    @property
    def log(self) -> Path:
        return self.folder / "gateway.log"

    @property
    def ready_file(self) -> Path:
        return self.folder / "gateway.ready"


class GatewayProcess:
    """Its own process group, so that Ctrl-C in a terminal reaches `serve` alone, which drains in the right order."""

    def __init__(self, place: GatewayPlace) -> None:
        self._place = place
        place.ready_file.unlink(missing_ok=True)
        with place.log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "gateway"),
                    *("--listen", place.listen),
                    *("--processes", str(place.processes)),
                    *("--control", str(place.control_file)),
                    *("--ready-file", str(place.ready_file)),
                    *("--max-message-bytes", str(place.bounds.max_message_bytes)),
                    *("--notice-s", str(place.bounds.notice_s)),
                    *("--finish-s", str(place.bounds.finish_s)),
                    "--die-with-parent",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=0,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it lives."""
        return self._process.poll()

    def wait_until_ready(self, check: Callable[[], None]) -> str:
        """The host:port it listens on. Calls `check` meanwhile, which may raise. Raises GatewayError."""
        until = time.monotonic() + READY_WITHIN_S
        while time.monotonic() < until:
            check()
            if self._place.ready_file.exists():
                address: str = json.loads(self._place.ready_file.read_text())["address"]
                return address
            if self.exit_code is not None:
                raise GatewayError(f"the gateway ended with code {self.exit_code}:\n{self._last_words()}")
            time.sleep(POLL_S)
        self.kill()
        raise GatewayError(f"the gateway did not listen within {READY_WITHIN_S:g} s:\n{self._last_words()}")

    def drain(self) -> int:
        """Has it answer what it owes and end; its exit code. Kills it where that takes longer than its own bounds."""
        if self.exit_code is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(self._place.bounds.notice_s + self._place.bounds.finish_s + MARGIN_S)
        except subprocess.TimeoutExpired:
            return self.kill()

    def kill(self) -> int:
        self._process.kill()
        return self._process.wait()

    def _last_words(self) -> str:
        lines = self._place.log.read_text(errors="replace").splitlines()
        return "\n".join(f"  {line}" for line in lines[-5:]) or "  (it said nothing)"
