"""A `shardline serve` in a process of its own, steady load on it, and what it started."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import tritonclient.grpc as triton

from shardline.running import controller_of
from shardline.status import as_line

WITHIN_S = 300.0
COMMAND = (sys.executable, "-m", "shardline.cli")


def shardline(*arguments: str | Path, within_s: float = WITHIN_S) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end."""
    return subprocess.run(
        [*COMMAND, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=within_s
    )


def wait_for(what: str, is_so: Callable[[], Any], within_s: float = WITHIN_S) -> Any:
    """What `is_so` gives, once that is true. Asks again and again: what it asks about is in other processes."""
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        if result := is_so():
            return result
        time.sleep(0.05)
    return pytest.fail(f"not within {within_s:g} s: {what}")


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those that still run. One that only waits to be reaped does not."""
    found = []
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


class ServeProcess:
    """`url`: the gateway's host:port."""

    def __init__(self, process: subprocess.Popen[str], state_dir: Path, url: str) -> None:
        self.process = process
        self.state_dir = state_dir
        self.url = url

    def status(self) -> dict[str, Any]:
        """What `shardline status --json` says, without a process for each look."""
        with controller_of(self.state_dir) as client:
            status: dict[str, Any] = json.loads(as_line(client.status()))
            return status

    def replicas(self, stage: int, state: str = "ready") -> list[dict[str, Any]]:
        stages = self.status()["models"][0]["stages"]
        return [replica for replica in stages[stage]["replicas"] if replica["state"] == state]

    def pids(self) -> set[int]:
        """Of the ready workers."""
        stages = self.status()["models"][0]["stages"]
        return {replica["pid"] for each in stages for replica in each["replicas"] if replica["state"] == "ready"}

    def started(self) -> list[psutil.Process]:
        """Every process below `serve`."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def named(self, part: str) -> list[psutil.Process]:
        found = []
        for process in self.started():
            with suppress(psutil.NoSuchProcess):  # it ended just now
                if part in " ".join(process.cmdline()):
                    found.append(process)
        return found


@contextmanager
def serve(
    models: Path, state_dir: Path, *options: str, cpus: int | None = 2, within_s: float = WITHIN_S
) -> Iterator[ServeProcess]:
    """Serves until the context ends, which kills what is left of it. Ready `within_s` seconds."""
    log = state_dir.with_name(state_dir.name + ".log")
    more = ("--cpus", str(cpus)) if cpus else ()
    with log.open("w") as said:
        process = subprocess.Popen(
            [*COMMAND, "serve", str(models), "--listen", "127.0.0.1:0", "--state-dir", str(state_dir), *more, *options],
            stderr=said,
            stdout=said,
            text=True,
            start_new_session=True,
        )
    below: list[psutil.Process] = []
    try:

        def ready() -> str:
            if process.poll() is not None:
                pytest.fail(f"serve ended with code {process.returncode}: {log.read_text()}")
            return next((line for line in log.read_text().splitlines() if line.startswith("ready: ")), "")

        url = wait_for(f"serve is ready; see {log}", ready, within_s).split()[1]
        below = psutil.Process(process.pid).children(recursive=True)
        yield ServeProcess(process, state_dir, url)
    finally:
        if process.poll() is None:
            below += psutil.Process(process.pid).children(recursive=True)
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)
        for each in alive(below):
            each.kill()


class Load:
    """Steady requests from threads, each checked. `failed`: what went wrong, by request."""

    def __init__(self, url: str, callers: int = 4) -> None:
        self.answered = 0
        self.failed: list[str] = []
        self._url = url
        self._done = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._call, args=(caller,)) for caller in range(callers)]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join()

    def wait_for_more(self, answers: int) -> None:
        """Until so many more were answered."""
        enough = self.answered + answers
        wait_for(f"{answers} more answers", lambda: self.answered >= enough or self.failed)

    def _call(self, caller: int) -> None:
        with triton.InferenceServerClient(self._url) as client:
            number = 0
            while not self._done.is_set():
                number += 1
                value = float(caller * 1000 + number % 100)
                try:
                    found = infer(client, np.full((1, 4), value, np.float32))
                    expected = 16 * value + 15
                    problem = "" if (found == expected).all() else f"expected {expected}, got {found}"
                except triton.InferenceServerException as error:
                    problem = str(error)
                with self._lock:
                    if problem:
                        self.failed.append(f"caller {caller}, request {number}: {problem}")
                    else:
                        self.answered += 1


def infer(client: Any, values: Any, timeout_s: float = 30.0) -> Any:
    """The chain model's answer: 16 times the values, plus 15."""
    given = triton.InferInput("input", values.shape, "FP32")
    given.set_data_from_numpy(values)
    return client.infer("chain", [given], client_timeout=timeout_s).as_numpy("output")


def epoch(state_dir: Path) -> int:
    """Of the controller that answers."""
    with controller_of(state_dir) as client:
        return client.status(5.0).epoch


def controller_process() -> psutil.Process:
    """Of the one controller below this process, on whichever node Ray put it."""
    (found,) = [each for each in psutil.Process().children(recursive=True) if _is_controller(each)]
    return found


def _is_controller(process: psutil.Process) -> bool:
    try:
        return "ray::ControllerActor" in " ".join(process.cmdline()[:1])
    except psutil.Error:  # it ended just now
        return False


def kill(pid: int, number: signal.Signals = signal.SIGKILL) -> None:
    os.kill(pid, number)
