"""How much memory a model takes: measured in a process of its own, which loads it and runs it once."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil
import torch

from compressor.profiling.measure import example_tensors
from worker.artifact import load_artifact
from worker.errors import Internal
from worker.seal import DEFAULT_KEY
from worker.shard import load_stages

WITHIN_S: Final = 300.0


@dataclass(frozen=True, slots=True)
class Resident:
    """Bytes that a process, or its GPU's memory, grew by. loaded: by loading. ran: by loading and running a batch."""

    loaded: int
    ran: int


def resident_bytes(
    artifacts: Sequence[Path],
    rows: int,
    length: int,
    *,
    stages: int = 1,
    device: str = "cpu",
    key: Path = DEFAULT_KEY,
) -> list[Resident]:
    """What a process grows by when it loads all stages of each artifact and computes one batch.

    Args:
        rows, length: of the batch; sizes of the batch axis and of every other.
        stages: that each artifact is cut into.
        key: vouches for compiled packages; without it an artifact runs uncompiled.

    Raises:
        Internal: a process failed, or they took over `WITHIN_S` seconds each.
    """
    given = json.dumps(
        {
            "artifacts": [str(path) for path in artifacts],
            "rows": rows,
            "length": length,
            "stages": stages,
            "device": device,
            "key": str(key),
        }
    )
    within = WITHIN_S * len(artifacts)
    command = [sys.executable, "-m", "compressor.profiling.resident", given]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True) as process:
        try:
            told, problem = process.communicate(timeout=within)
        except subprocess.TimeoutExpired as error:
            raise Internal(f"measuring memory took over {within:g} s") from error
        finally:
            if process.returncode != 0:  # what it started goes with it
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
    if process.returncode:
        raise Internal(f"measuring memory failed: {problem.strip()[-500:]}")
    return [Resident(*item) for item in json.loads(told.splitlines()[-1])]


def _grown(artifact: Path, given: Mapping[str, Any]) -> tuple[int, int]:
    """Bytes of the device's memory (cpu: this process's) that are taken: by loading, and by a batch too."""
    torch.set_num_threads(1)
    device = given["device"]
    taken = _taken(device)
    loading = load_artifact(artifact)
    inputs = example_tensors(loading.manifest.signature, given["rows"], given["length"])
    before = taken()
    run = load_stages(loading, stages=given["stages"], device=device, key=Path(given["key"]))
    loaded = taken()
    run(inputs)
    return loaded - before, taken() - before


def _taken(device: str) -> Callable[[], int]:
    """Reads how much memory is taken now. On a GPU that is all of the GPU's: whoever else uses it is counted too."""
    if device == "cpu":
        process = psutil.Process()
        return lambda: int(process.memory_info().rss)
    torch.zeros(1, device=device)  # CUDA's own part comes before anything is measured

    def read() -> int:
        free, there = torch.cuda.mem_get_info(device)
        return there - free

    return read


def _main(given: Mapping[str, Any]) -> None:
    """Each artifact in a process of its own; all begin as this one is now, with the libraries loaded."""
    context = multiprocessing.get_context("fork" if given["device"] == "cpu" else "spawn")
    found = []
    for artifact in given["artifacts"]:
        with ProcessPoolExecutor(1, context) as process:  # its death is an error here; a Pool waits for ever
            found.append(process.submit(_grown, Path(artifact), given).result())
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    _main(json.loads(sys.argv[1]))
