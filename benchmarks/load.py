"""A closed-loop load: so many callers, each with one unary request outstanding, for so many seconds.

Runs as a process of its own (`python -m benchmarks.load …`), so that every rival is asked by the same client; prints
one line of JSON. Requests are read from a file of serialized messages, each after its length as a 4-byte little-endian
number, and sent in turn.
"""

import argparse
import asyncio
import itertools
import json
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import grpc.aio
import uvloop

METHOD = "/inference.GRPCInferenceService/ModelInfer"
_LENGTH = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class Figures:
    """What one run gave. Latencies in milliseconds; `answers` counts those that came inside the measured time."""

    answers: int
    seconds: float
    per_second: float
    p50_ms: float
    p95_ms: float
    p99_ms: float


def write_requests(path: Path, requests: Sequence[bytes]) -> None:
    path.write_bytes(b"".join(_LENGTH.pack(len(request)) + request for request in requests))


def read_requests(path: Path) -> list[bytes]:
    data, offset, requests = path.read_bytes(), 0, []
    while offset < len(data):
        (length,) = _LENGTH.unpack_from(data, offset)
        offset += _LENGTH.size
        requests.append(data[offset : offset + length])
        offset += length
    return requests


def run_load(target: str, requests: Path, *, callers: int, seconds: float, warm_up_s: float = 0.5) -> Figures:
    """Runs the load in a process of its own. Raises `RuntimeError` with its message where a request failed."""
    command = [sys.executable, "-m", "benchmarks.load", "--target", target, "--requests", str(requests)]
    command += ["--callers", str(callers), "--seconds", str(seconds), "--warm-up", str(warm_up_s)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + warm_up_s + 60, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"the load on {target} failed:\n{done.stderr[-2000:]}")
    return Figures(**json.loads(done.stdout.splitlines()[-1]))


def median_of(runs: Sequence[Figures]) -> Figures:
    """Figure by figure."""
    names = ("answers", "seconds", "per_second", "p50_ms", "p95_ms", "p99_ms")
    medians = {name: statistics.median(getattr(run, name) for run in runs) for name in names}
    return Figures(**medians)


async def load(target: str, requests: Sequence[bytes], *, callers: int, seconds: float, warm_up_s: float) -> Figures:
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    latencies: list[float] = []
    async with grpc.aio.insecure_channel(target, options=options) as channel:
        infer: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(METHOD)
        turns = itertools.cycle(requests)
        started = time.perf_counter() + warm_up_s
        stop = started + seconds

        async def caller(own: Iterator[bytes]) -> None:
            while (sent := time.perf_counter()) < stop:
                await infer(next(own), timeout=60, metadata=(("application", "default"),))
                done = time.perf_counter()
                if started < done <= stop:
                    latencies.append(done - sent)

        await asyncio.gather(*(caller(turns) for _ in range(callers)))
    latencies.sort()
    return Figures(
        answers=len(latencies),
        seconds=seconds,
        per_second=len(latencies) / seconds,
        p50_ms=1e3 * latencies[len(latencies) // 2],
        p95_ms=1e3 * latencies[min(len(latencies) - 1, int(0.95 * len(latencies)))],
        p99_ms=1e3 * latencies[min(len(latencies) - 1, int(0.99 * len(latencies)))],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", required=True, help="host:port")
    parser.add_argument("--requests", required=True, type=Path)
    parser.add_argument("--callers", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--warm-up", type=float, default=0.5, help="seconds before the clock starts")
    given = parser.parse_args()
    figures = uvloop.run(
        load(
            given.target,
            read_requests(given.requests),
            callers=given.callers,
            seconds=given.seconds,
            warm_up_s=given.warm_up,
        )
    )
    print(json.dumps(asdict(figures)))


if __name__ == "__main__":
    main()
