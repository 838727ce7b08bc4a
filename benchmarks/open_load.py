"""An open-loop load: so many requests a second, whatever becomes of them, in steps of their own rates.

Runs as a process of its own (`python -m benchmarks.open_load …`), so that it shares nothing with what it measures;
prints one line of JSON. Requests are read as `benchmarks.load` reads them.
"""

import argparse
import asyncio
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import grpc.aio
import uvloop

from benchmarks.load import METHOD, read_requests

BUCKET_S = 0.25


@dataclass
class Fates:
    """What became of the requests of one step. Times in milliseconds, as the client sees them.

    in_time: answered inside the deadline. refused: RESOURCE_EXHAUSTED. late: DEADLINE_EXCEEDED.
    in_time_by_bucket: share of those sent in each `BUCKET_S` seconds.
    """

    rate: float
    seconds: float
    sent: int = 0
    in_time: int = 0
    refused: int = 0
    late: int = 0
    other: int = 0
    refused_p50_ms: float = 0.0
    refused_p99_ms: float = 0.0
    in_time_p50_ms: float = 0.0
    in_time_p99_ms: float = 0.0
    in_time_by_bucket: list[float] = field(default_factory=list)

    @property
    def goodput(self) -> float:
        """Answers inside their deadline, a second."""
        return self.in_time / self.seconds


@dataclass(frozen=True, slots=True)
class _Fate:
    step: int
    sent: float
    took: float
    code: grpc.StatusCode | None


def run_steps(target: str, requests: Path, steps: Sequence[tuple[float, float]], deadline_s: float) -> list[Fates]:
    """`steps`: rate a second and seconds of each, one after the other without a break."""
    command = [sys.executable, "-m", "benchmarks.open_load", "--target", target, "--requests", str(requests)]
    command += ["--deadline", str(deadline_s), *(f"{rate:g}:{seconds:g}" for rate, seconds in steps)]
    within_s = sum(seconds for _, seconds in steps) + 60
    done = subprocess.run(command, capture_output=True, text=True, timeout=within_s, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"the load on {target} failed:\n{done.stderr[-2000:]}")
    return [Fates(**one) for one in json.loads(done.stdout.splitlines()[-1])]


async def load(
    target: str, requests: Sequence[bytes], steps: Sequence[tuple[float, float]], deadline_s: float
) -> list[Fates]:
    fates: list[_Fate] = []
    async with grpc.aio.insecure_channel(target) as channel:
        infer: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(METHOD)
        turns = itertools.cycle(requests)

        async def call(step: int, began: float) -> None:
            sent = time.perf_counter()
            code = None
            try:
                await infer(next(turns), timeout=deadline_s, metadata=(("application", "default"),))
            except grpc.aio.AioRpcError as error:
                code = error.code()
            fates.append(_Fate(step, sent - began, time.perf_counter() - sent, code))

        await channel.channel_ready()
        async with asyncio.TaskGroup() as calls:
            for step, (rate, seconds) in enumerate(steps):
                began = time.perf_counter()
                sent = 0
                while (now := time.perf_counter() - began) < seconds:
                    for _ in range(int(now * rate) + 1 - sent):
                        sent += 1
                        calls.create_task(call(step, began))
                    await asyncio.sleep(max(0.0005, sent / rate - now))
    return [
        _summed_up(rate, seconds, [fate for fate in fates if fate.step == step])
        for step, (rate, seconds) in enumerate(steps)
    ]


def _summed_up(rate: float, seconds: float, fates: Sequence[_Fate]) -> Fates:
    good = sorted(fate.took for fate in fates if fate.code is None)
    refused = sorted(fate.took for fate in fates if fate.code is grpc.StatusCode.RESOURCE_EXHAUSTED)
    late = sum(fate.code is grpc.StatusCode.DEADLINE_EXCEEDED for fate in fates)
    shares = []
    for bucket in range(int(seconds / BUCKET_S)):
        inside = [fate for fate in fates if bucket <= fate.sent / BUCKET_S < bucket + 1]
        shares.append(round(sum(fate.code is None for fate in inside) / max(1, len(inside)), 3))
    return Fates(
        rate=rate,
        seconds=seconds,
        sent=len(fates),
        in_time=len(good),
        refused=len(refused),
        late=late,
        other=len(fates) - len(good) - len(refused) - late,
        refused_p50_ms=_at(refused, 0.5),
        refused_p99_ms=_at(refused, 0.99),
        in_time_p50_ms=_at(good, 0.5),
        in_time_p99_ms=_at(good, 0.99),
        in_time_by_bucket=shares,
    )


def _at(ordered: Sequence[float], share: float) -> float:
    return round(1e3 * ordered[min(len(ordered) - 1, int(share * len(ordered)))], 2) if ordered else 0.0


def _step(text: str) -> tuple[float, float]:
    rate, _, seconds = text.partition(":")
    return float(rate), float(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("steps", nargs="+", type=_step, metavar="RATE:SECONDS")
    parser.add_argument("--target", required=True, help="host:port")
    parser.add_argument("--requests", required=True, type=Path)
    parser.add_argument("--deadline", type=float, default=1.0, help="of each request, seconds")
    given = parser.parse_args()
    fates = uvloop.run(load(given.target, read_requests(given.requests), given.steps, given.deadline))
    print(json.dumps([asdict(one) for one in fates]))


if __name__ == "__main__":
    main()
