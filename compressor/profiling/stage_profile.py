"""One stage measured in a process of its own, so that its memory can be told from anything else's.

    python -m compressor.profiling.stage_profile REQUEST    (JSON, see `Request`); prints a line of JSON, see `Measured`

`measure_stage` and `Crowd` start it.
"""

import json
import math
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Final, Literal, Self

from worker.errors import Internal

ENOUGH_S: Final = 0.1
"""For each size so much time is spent on measuring all of them, in at least `LEAST_ROUNDS` rounds, seconds."""
LEAST_ROUNDS: Final = 2
MOST_ROUNDS: Final = 10
TOO_LONG_S: Final = 2.0
"""Where one run takes longer than this, larger sizes are left out, seconds."""
LOAD_WITHIN_S: Final = 300.0
CROWD_S: Final = 0.7
CROWD_TURNS: Final = 7
_GO: Final = "go\n"
_READY: Final = "ready"

Size = tuple[int, int]
"""Rows, and the length of every other axis."""
Run = Callable[[], float]
"""Runs once, and tells the seconds."""


@dataclass(frozen=True, slots=True)
class Request:
    """sizes: (rows, length), measured in this order. wait: runs the first for a while, whenever it is told to."""

    folder: str
    stage: int
    stages: int
    device: str
    threads: int
    runtime: Literal["fastest", "eager"]
    key: str
    sizes: tuple[tuple[int, int], ...]
    wait: bool = False

    @classmethod
    def read(cls, text: str) -> Self:
        """From the JSON that a parent gives the process that measures."""
        told = json.loads(text)
        return cls(**told | {"sizes": tuple((rows, length) for rows, length in told["sizes"])})


@dataclass(frozen=True, slots=True)
class Measured:
    """seconds: of several runs of each size that was measured. loaded_bytes, peak_bytes: as in `StageProfile`."""

    runtime: Literal["eager", "aotinductor"]
    process_bytes: int
    loaded_bytes: int
    peak_bytes: int
    seconds: Mapping[Size, Sequence[float]]
    note: str = ""


def measure_stage(request: Request) -> Measured:
    """Raises `Internal` with the process's last words where the stage cannot be loaded or run."""
    done = subprocess.run(
        [sys.executable, "-m", "compressor.profiling.stage_profile", json.dumps(asdict(request))],
        capture_output=True,
        text=True,
        timeout=LOAD_WITHIN_S + 20 * len(request.sizes),
        check=False,
    )
    if done.returncode != 0:
        raise Internal(f"stage {request.stage} of {request.stages} could not be measured: {_last(done.stderr)}")
    told = json.loads(done.stdout.splitlines()[-1])
    return Measured(**told | {"seconds": {(rows, length): taken for rows, length, taken in told["seconds"]}})


def crowded(request: Request, processes: int, *, turns: int = CROWD_TURNS) -> float:
    """Seconds of a run while `processes` processes compute at once, over the least of one alone.

    Where a machine is shared, its cores are slowed down by turns: the mean speed of all processes and turns counts.

    Raises `Internal` as `measure_stage` does.
    """
    if processes < 2:
        return 1.0
    with Crowd(request, processes) as crowd:
        return slowed([(crowd.alone(), crowd.together()) for _ in range(turns)])


def slowed(turns: Sequence[tuple[float, Sequence[float]]]) -> float:
    """By how much: of each turn, the seconds of one process alone, and of each while all compute."""
    together = statistics.harmonic_mean([seconds for _, several in turns for seconds in several])
    return max(1.0, together / min(alone for alone, _ in turns))


class Crowd(AbstractContextManager["Crowd"]):
    """Processes that have the stage loaded, wait, and run the first of its sizes for a while when they are told to.

    Raises `Internal` as `measure_stage` does.
    """

    def __init__(self, request: Request, processes: int) -> None:
        told = json.dumps(asdict(request) | {"wait": True})
        self._command = [sys.executable, "-m", "compressor.profiling.stage_profile", told]
        self._processes = processes
        self._children: list[subprocess.Popen[str]] = []
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        logs: list[IO[str]] = []
        with ExitStack() as stack:
            for _ in range(self._processes):
                pipe = subprocess.PIPE
                log: IO[str] = stack.enter_context(tempfile.TemporaryFile("w+"))  # a pipe that nobody reads would fill
                child = subprocess.Popen(self._command, stdin=pipe, stdout=pipe, stderr=log, text=True)
                stack.enter_context(child)
                stack.callback(_end, child)
                self._children.append(child)
                logs.append(log)
            for child, log in zip(self._children, logs, strict=True):
                if not _is_ready(child):
                    log.seek(0)
                    raise Internal(f"the stage could not be measured: {_last(log.read())}")
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def alone(self) -> float:
        """Seconds of a run, always by the same process."""
        return _together(self._children[:1])[0]

    def together(self) -> tuple[float, ...]:
        """Seconds of a run of each while all of them run."""
        return tuple(_together(self._children))


def _end(child: "subprocess.Popen[str]") -> None:
    child.kill()
    with suppress(OSError):  # what it was told last may not have reached it
        if child.stdin is not None:
            child.stdin.close()


def _is_ready(child: "subprocess.Popen[str]") -> bool:
    """Libraries may say something first. False: it has ended."""
    while line := _told(child):
        if line == _READY:
            return True
    return False


def _together(children: Sequence["subprocess.Popen[str]"]) -> list[float]:
    """Seconds of a run in each of them, while all of them run."""
    try:
        for child in children:
            if child.stdin is not None:
                child.stdin.write(_GO)
                child.stdin.flush()
    except OSError:
        said = [""]
    else:
        said = [_told(child) for child in children]
    if not all(said):
        raise Internal("the stage could not be measured: a process that ran it has ended")
    return [float(line) for line in said]


def _told(child: "subprocess.Popen[str]") -> str:
    """The next line of what it says; "" where it has ended, or says nothing in time and is ended for that."""
    late = threading.Timer(LOAD_WITHIN_S, child.kill)
    late.start()
    try:
        return child.stdout.readline().strip() if child.stdout is not None else ""
    finally:
        late.cancel()


def _last(words: str) -> str:
    return (words.strip().splitlines() or ["no word"])[-1][:300]


def main(arguments: Sequence[str]) -> None:
    request = Request.read(arguments[0])
    set_up(request)
    if request.wait:
        _run_when_told(request)
    else:
        found = _measure(request)
        seconds = [(*size, taken) for size, taken in found.seconds.items()]
        sys.stdout.write(json.dumps(asdict(replace(found, seconds={})) | {"seconds": seconds}) + "\n")


def set_up(request: Request) -> None:
    import torch  # noqa: PLC0415 -- the parent does not need it

    torch.set_num_threads(request.threads)


def _measure(request: Request) -> Measured:
    from worker.worker import resident_bytes  # noqa: PLC0415

    bare = resident_bytes()
    shard = load_stage(request)
    loaded = resident_bytes()
    _forget_peak()
    runs: dict[Size, Run] = {}
    too_large: int | None = None
    for rows, length in request.sizes:
        if too_large is not None and rows * length >= too_large:
            continue
        run = prepared(shard, request, rows, length)
        run()  # pays for what is done but once
        runs[rows, length] = run
        if run() > TOO_LONG_S:
            too_large = rows * length
    seconds = in_turns(runs, enough_s=ENOUGH_S * len(runs))
    return Measured(
        shard.runtime,
        bare,
        max(0, loaded - bare),
        max(0, _peak_bytes() - loaded),
        seconds,
        shard.note,
    )


def in_turns(runs: Mapping[Size, Run], *, enough_s: float) -> dict[Size, list[float]]:
    """Seconds of several runs of each, in rounds, each in another order.

    In serving, too, a batch follows one of another size: it finds other things in the caches than its own. And what
    makes the machine slower for a while makes every size slower, not one.
    """
    taken: dict[Size, list[float]] = {size: [] for size in runs}
    order, chance = list(runs), random.Random(0)
    began = time.perf_counter()
    for number in range(MOST_ROUNDS):
        if number >= LEAST_ROUNDS and time.perf_counter() - began > enough_s:
            break
        chance.shuffle(order)
        for size in order:
            taken[size].append(runs[size]())
    return taken


def _run_when_told(request: Request) -> None:
    run = prepared(load_stage(request), request, *request.sizes[0])
    for _ in range(LEAST_ROUNDS):
        run()
    sys.stdout.write(f"{_READY}\n")
    sys.stdout.flush()
    while sys.stdin.readline() == _GO:
        taken: list[float] = []
        until = time.perf_counter() + CROWD_S
        while not taken or time.perf_counter() < until:
            taken.append(run())
        sys.stdout.write(f"{statistics.median(taken)}\n")
        sys.stdout.flush()


def load_stage(request: Request):  # type: ignore[no-untyped-def]
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


def prepared(shard, request: Request, rows: int, length: int) -> Run:  # type: ignore[no-untyped-def]
    """Does what a worker's compute thread does with a batch of so many requests: put together, run, take the bytes.

    The seconds are of this thread's own work where there is but one, so that other work does not count.
    """
    import torch  # noqa: PLC0415

    from compressor.profiling.measure import clock_of, example_tensors  # noqa: PLC0415
    from worker.collate import Collator, to_tensors  # noqa: PLC0415
    from worker.nouns import Work  # noqa: PLC0415

    clock = clock_of(request.device) if request.threads == 1 else time.perf_counter
    signature = shard.signature
    collator = Collator(signature.inputs, signature.outputs)

    def run() -> float:
        batch = example_tensors(signature, rows, length)
        # The first stage gets requests, the others the batch of the one before.
        single = request.stage == 0 and signature.batched
        parts = zip(*(torch.split(tensor, 1) for tensor in batch), strict=True) if single else [batch]
        works = [Work(to_tensors(part, signature.inputs), deadline=math.inf) for part in parts]
        started = clock()
        to_tensors(shard.run(collator.stack(works)), signature.outputs)
        return clock() - started

    return run


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
