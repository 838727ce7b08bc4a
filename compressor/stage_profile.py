"""One stage measured in a process of its own, so that its memory can be told from anything else's.

    python -m compressor.stage_profile REQUEST    (JSON, see `Request`); prints one line of JSON, see `Measured`

`measure_stage` and `crowded` start it.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal

from worker.errors import Internal

ENOUGH_S: Final = 0.25
"""A size is measured until this much time is spent on it, in at least `LEAST_ROUNDS` rounds, seconds."""
LEAST_ROUNDS: Final = 3
MOST_ROUNDS: Final = 25
TOO_LONG_S: Final = 2.0
"""Where one run takes longer than this, larger sizes are left out, seconds."""
LOAD_WITHIN_S: Final = 300.0
CROWD_S: Final = 2.0
_GO: Final = "go\n"


@dataclass(frozen=True, slots=True)
class Request:
    """sizes: (rows, length) in the order in which they are measured. wait: runs the first for a while, when told."""

    folder: str
    stage: int
    stages: int
    device: str
    threads: int
    runtime: Literal["fastest", "eager"]
    key: str
    sizes: tuple[tuple[int, int], ...]
    wait: bool = False


@dataclass(frozen=True, slots=True)
class Measured:
    """seconds: of each size that was measured. loaded_bytes, peak_bytes: as in `worker.profile.StageProfile`."""

    runtime: Literal["eager", "aotinductor"]
    process_bytes: int
    loaded_bytes: int
    peak_bytes: int
    seconds: tuple[tuple[int, int, float], ...]
    note: str = ""


def measure_stage(request: Request) -> Measured:
    """Raises `Internal` with the process's last words where the stage cannot be loaded or run."""
    done = subprocess.run(
        [sys.executable, "-m", "compressor.stage_profile", json.dumps(asdict(request))],
        capture_output=True,
        text=True,
        timeout=LOAD_WITHIN_S + 20 * len(request.sizes),
        check=False,
    )
    if done.returncode != 0:
        raise Internal(f"stage {request.stage} of {request.stages} could not be measured: {_last(done.stderr)}")
    told = json.loads(done.stdout.splitlines()[-1])
    return Measured(**told | {"seconds": tuple((rows, length, value) for rows, length, value in told["seconds"])})


def crowded(request: Request, processes: int) -> float:
    """Seconds of a run while `processes` processes compute at once, over those of one alone.

    Raises `Internal` as `measure_stage` does.
    """
    alone = statistics.median(_together(request, 1))
    return max(1.0, statistics.median(_together(request, processes)) / alone) if processes > 1 else 1.0


def _together(request: Request, processes: int) -> list[float]:
    """Seconds of a run in each of so many processes that run at the same time."""
    command = [sys.executable, "-m", "compressor.stage_profile", json.dumps(asdict(request) | {"wait": True})]
    with ExitStack() as stack:
        children = [
            stack.enter_context(
                subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
                )
            )
            for _ in range(processes)
        ]
        for child in children:
            stack.callback(child.kill)
        for child in children:
            if child.stdout is None or child.stdout.readline() != "ready\n":
                raise Internal(f"the stage could not be measured: {_last(child.stderr.read() if child.stderr else '')}")
        for child in children:
            if child.stdin is not None:
                child.stdin.write(_GO)
                child.stdin.flush()
        outputs = [child.communicate(timeout=LOAD_WITHIN_S)[0] for child in children]
        return [float(output.splitlines()[-1]) for output in outputs]


def _last(words: str) -> str:
    return (words.strip().splitlines() or ["no word"])[-1][:300]


def main(arguments: Sequence[str]) -> None:
    told = json.loads(arguments[0])
    request = Request(**told | {"sizes": tuple((rows, length) for rows, length in told["sizes"])})
    _set_up(request)
    if request.wait:
        _run_when_told(request)
    else:
        sys.stdout.write(json.dumps(asdict(_measure(request))) + "\n")


def _set_up(request: Request) -> None:
    import torch  # noqa: PLC0415 -- the parent does not need it

    torch.set_num_threads(request.threads)


def _measure(request: Request) -> Measured:
    from worker.worker import resident_bytes  # noqa: PLC0415

    bare = resident_bytes()
    shard = _load(request)
    loaded = resident_bytes()
    _forget_peak()
    seconds: list[tuple[int, int, float]] = []
    too_large: int | None = None
    for rows, length in request.sizes:
        if too_large is not None and rows * length >= too_large:
            continue
        taken = _typical(_rounds(shard, request, rows, length), request.threads)
        seconds.append((rows, length, taken))
        if taken > TOO_LONG_S:
            too_large = rows * length
    return Measured(
        shard.runtime,
        bare,
        max(0, loaded - bare),
        max(0, _peak_bytes() - loaded),
        tuple(seconds),
        shard.note,
    )


def _run_when_told(request: Request) -> None:
    shard = _load(request)
    rows, length = request.sizes[0]
    _rounds(shard, request, rows, length)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    if sys.stdin.readline() != _GO:
        return
    taken: list[float] = []
    until = time.perf_counter() + CROWD_S
    while time.perf_counter() < until:
        taken += _rounds(shard, request, rows, length)
    sys.stdout.write(f"{statistics.median(taken)}\n")


def _load(request: Request):  # type: ignore[no-untyped-def]
    from worker.artifact import load_artifact  # noqa: PLC0415
    from worker.shard import load_shard  # noqa: PLC0415

    return load_shard(
        load_artifact(Path(request.folder)),
        stage=request.stage,
        stages=request.stages,
        device=request.device,
        runtime=request.runtime,
        key=Path(request.key),
    )


def _rounds(shard, request: Request, rows: int, length: int) -> list[float]:  # type: ignore[no-untyped-def]
    """Seconds of several runs: of this thread's own work where there is but one, so that other work does not count."""
    from compressor.measure import clock_of  # noqa: PLC0415
    from compressor.profile import example_tensors  # noqa: PLC0415

    clock = clock_of(request.device) if request.threads == 1 else time.perf_counter
    inputs = example_tensors(shard.signature, rows, length)
    shard.run(inputs)
    taken: list[float] = []
    began = time.perf_counter()
    while len(taken) < LEAST_ROUNDS or (len(taken) < MOST_ROUNDS and time.perf_counter() - began < ENOUGH_S):
        started = clock()
        shard.run(inputs)
        taken.append(clock() - started)
    return taken


def _typical(taken: Sequence[float], threads: int) -> float:
    """The median of one thread's own time; the least of the wall-clock's, to which other work only ever adds."""
    return statistics.median(taken) if threads == 1 else min(taken)


def _forget_peak() -> None:
    """Makes the kernel count the peak of resident memory anew, where it can (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return


def _peak_bytes() -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


if __name__ == "__main__":
    main(sys.argv[1:])
