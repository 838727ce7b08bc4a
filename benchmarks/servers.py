"""Starts each rival as a process of its own and tells its address; ends it afterwards, whatever happened."""

import contextlib
import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from gateway.parent import die_with_parent

START_WITHIN_S = 180.0
END_WITHIN_S = 60.0


@contextlib.contextmanager
def shardline(models: Path, state_dir: Path, *, processes: int = 1, cpus: int = 2) -> Iterator[str]:
    """`shardline serve` on a free port, with `cpus` CPUs in its embedded Ray; yields once every model is ready."""
    command = ["-m", "shardline.cli", "serve", str(models), "--listen", "127.0.0.1:0", "--state-dir", str(state_dir)]
    command += ["--processes", str(processes), "--cpus", str(cpus)]
    with _process(command, r"ready: (\S+:\d+)") as address:
        yield address


@contextlib.contextmanager
def ray_serve(app: str, *, replicas: int = 1, device: str = "cpu", rows: int = 16) -> Iterator[str]:
    command = ["-m", "benchmarks.ray_serve_app", app, "--replicas", str(replicas)]
    with _process([*command, "--device", device, "--rows", str(rows)], r"^(\S+:\d+)$") as address:
        yield address


@contextlib.contextmanager
def raw_echo() -> Iterator[str]:
    with _process(["-m", "benchmarks.raw_echo"], r"^(\S+:\d+)$") as address:
        yield address


def status(state_dir: Path) -> dict[str, Any]:
    """What `shardline status --json` says of a running serve."""
    command = [sys.executable, "-m", "shardline.cli", "status", "--json", "--state-dir", str(state_dir)]
    said: dict[str, Any] = json.loads(subprocess.check_output(command, timeout=30))
    return said


@contextlib.contextmanager
def _process(arguments: Sequence[str], ready: str) -> Iterator[str]:
    """Runs Python with `arguments` until the block ends; yields the group of `ready` in the first line that has it."""
    child = subprocess.Popen(
        [sys.executable, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=partial(die_with_parent, os.getpid()),  # noqa: PLW1509 - no other thread loads libraries here
    )
    lines: queue.Queue[str | None] = queue.Queue()
    reader = threading.Thread(target=_read, args=(child, lines), daemon=True)
    reader.start()
    try:
        yield _first_match(lines, re.compile(ready), arguments)
    finally:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(END_WITHIN_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        reader.join(5)


def _read(child: "subprocess.Popen[str]", lines: "queue.Queue[str | None]") -> None:
    for line in child.stdout or ():
        lines.put(line.rstrip("\n"))
    lines.put(None)


def _first_match(lines: "queue.Queue[str | None]", ready: re.Pattern[str], what: Sequence[str]) -> str:
    said: list[str] = []
    with contextlib.suppress(queue.Empty):
        while (line := lines.get(timeout=START_WITHIN_S)) is not None:
            match = ready.search(line)
            if match:
                return match[1]
            said.append(line)
    raise RuntimeError(f"{' '.join(what)} did not become ready:\n" + "\n".join(said[-40:]))
