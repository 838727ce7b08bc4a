"""How fast this machine's cores are while something runs: on a shared one, that changes within a tenth of a second.

python -m benchmarks.speed CORE REQUEST    prints a line for each sample, see `Sample`; `Speed` starts it
"""

import itertools
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final, Self

from compressor.profiling.stage_profile import Request, load_stage, prepared, set_up

SHARE: Final = 0.03
"""Of each core's time that its samples take."""
AHEAD: Final = -15
"""The niceness that samples ask for: they should not wait for what they tell the speed of."""
LEAST_BUSY: Final = 0.5
START_WITHIN_S: Final = 120.0


@dataclass(frozen=True, slots=True)
class Sample:
    """at: when, by `time.monotonic`. seconds: processor time of the run. busy: of its core, since the sample before.

    rows, length: of the batch that was run.
    """

    at: float
    rows: int
    length: int
    seconds: float
    busy: float

    @classmethod
    def read(cls, line: str) -> Self:
        at, rows, length, seconds, busy = line.split()
        return cls(float(at), int(rows), int(length), float(seconds), float(busy))


class Speed(AbstractContextManager["Speed"]):
    """A process on each core that runs a stage now and then, one of the sizes after the other, and tells the processor
    time that it takes.

    That time grows where the host lets others compute on what the core consists of; not by as much for every size.
    """

    def __init__(self, request: Request) -> None:
        self._request = replace(request, threads=1)
        self._samples: list[Sample] = []
        self._children: list[subprocess.Popen[str]] = []
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        told = json.dumps(asdict(self._request))
        with ExitStack() as stack:
            first = []
            for core in sorted(os.sched_getaffinity(0)):
                command = [sys.executable, "-m", "benchmarks.speed", str(core), told]
                child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
                stack.enter_context(child)
                stack.callback(child.kill)
                self._children.append(child)
                first.append(threading.Event())
                threading.Thread(target=self._read, args=(child, first[-1]), daemon=True).start()
            if not all(one.wait(START_WITHIN_S) for one in first):
                raise RuntimeError("a process that tells a core's speed does not start")
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _read(self, child: "subprocess.Popen[str]", first: threading.Event) -> None:
        for line in child.stdout or ():
            self._samples.append(Sample.read(line))
            first.set()

    def samples(self, since: float, until: float) -> tuple[Sample, ...]:
        """Those between two times of `time.monotonic`, of cores that were busy: an idle one is slow at first.

        Raises `RuntimeError` where there are none, or where a core is sampled no more.
        """
        if any(child.poll() is not None for child in self._children):
            raise RuntimeError("a process that told a core's speed has ended")
        found = tuple(one for one in list(self._samples) if since <= one.at <= until and one.busy >= LEAST_BUSY)
        if not found:
            raise RuntimeError(f"no core was sampled while it was busy, in {until - since:.1f} s")
        return found


def main(core: int, request: Request) -> None:
    os.sched_setaffinity(0, {core})
    set_up(request)
    shard = load_stage(request)
    runs = {size: prepared(shard, request, *size) for size in request.sizes}
    try:
        os.nice(AHEAD)
    except PermissionError:
        sys.stderr.write("the speed of cores is told badly: without the right to a better niceness, samples wait\n")
    took = {size: statistics.median([run() for _ in range(5)]) for size, run in runs.items()}
    idle, before = _idle_s(core), time.monotonic()
    for size, run in itertools.cycle(runs.items()):
        time.sleep(2 * took[size] / SHARE)
        idle_now, now = _idle_s(core), time.monotonic()
        run()  # finds its own things in the caches again
        seconds = run()
        print(now, *size, seconds, 1 - min(1.0, (idle_now - idle) / (now - before)), flush=True)
        idle, before = _idle_s(core), time.monotonic()


def _idle_s(core: int) -> float:
    """Seconds for which the core had nothing to do, ever."""
    for line in Path("/proc/stat").read_text(encoding="ascii").splitlines():
        name, *ticks = line.split()
        if name == f"cpu{core}":
            return (int(ticks[3]) + int(ticks[4])) / os.sysconf("SC_CLK_TCK")
    raise RuntimeError(f"/proc/stat does not tell of core {core}")


if __name__ == "__main__":
    main(int(sys.argv[1]), Request.read(sys.argv[2]))
