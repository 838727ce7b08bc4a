"""Steady load in a process of its own: so many requests a second, each with an answer of its own that is checked.

`python -m tests.chaos.load HOST:PORT` prints a line of JSON every fifth of a second, and a last one with everything
when its standard input ends and every request has come to its end. A request is lost when it gets no right answer
inside its deadline. It is sent once, unless `--retry` is given: then gRPC itself sends it again when its connection
ended, as a service config with a retry policy tells every gRPC client to do.
"""

import argparse
import asyncio
import json
import struct
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass, field
from types import TracebackType
from typing import Self

import grpc.aio

from protos import inference_pb2 as pb
from tests.shardline.serve_process import wait_for

METHOD = "/inference.GRPCInferenceService/ModelInfer"
REPORT_EVERY_S = 0.2
KEPT_PROBLEMS = 20
LONGEST_CATCH_UP_S = 0.25
"""What was not sent for longer than this, because the machine was busy, is not sent later all at once."""
RETRY = {
    "methodConfig": [
        {
            "name": [{"service": "inference.GRPCInferenceService"}],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.05s",
                "maxBackoff": "0.5s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}


@dataclass
class Counts:
    """answered: with the right answer. lost: with another, with an error or with none. duplicated: answers that belong
    to a request of which an answer had come, to whichever call.

    problems: what the first lost ones got, and when, seconds since the start. stood_still_s: the longest for which the
    load itself did not get to run.
    """

    sent: int = 0
    answered: int = 0
    lost: int = 0
    duplicated: int = 0
    worst_ms: float = 0.0
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    stood_still_s: float = 0.0
    problems: list[str] = field(default_factory=list)


class Caller:
    """Sends `rate` requests a second over `connections`, whether or not the earlier ones were answered."""

    def __init__(self, target: str, rate: float, connections: int, deadline_s: float, *, retry: bool) -> None:
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.initial_reconnect_backoff_ms", 100)]
        more = [("grpc.service_config", json.dumps(RETRY))] if retry else [("grpc.enable_retries", 0)]
        self._channels = [grpc.aio.insecure_channel(target, options=[*options, *more]) for _ in range(connections)]
        self._infer: list[grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]] = [
            channel.unary_unary(METHOD) for channel in self._channels
        ]
        self._rate = rate
        self._deadline_s = deadline_s
        self._came: set[str] = set()
        self._latencies: list[float] = []
        self._began = time.monotonic()
        self.counts = Counts()

    async def run(self, stop: asyncio.Event) -> None:
        outstanding: set[asyncio.Task[None]] = set()
        self._began = looked = time.monotonic()
        due = 0.0
        while not stop.is_set():
            gap, looked = time.monotonic() - looked, time.monotonic()
            self.counts.stood_still_s = max(self.counts.stood_still_s, round(gap, 2))
            due += min(gap, LONGEST_CATCH_UP_S) * self._rate
            for _ in range(int(due) - self.counts.sent):
                self.counts.sent += 1
                task = asyncio.create_task(self._call(self.counts.sent))
                outstanding.add(task)
                task.add_done_callback(outstanding.discard)
            await asyncio.sleep(1 / self._rate)
        await asyncio.gather(*outstanding)
        await asyncio.gather(*(channel.close() for channel in self._channels))
        self._latencies.sort()
        for name, share in (("p50_ms", 0.5), ("p99_ms", 0.99), ("worst_ms", 1.0)):
            at = min(len(self._latencies) - 1, int(share * len(self._latencies)))
            setattr(self.counts, name, round(1e3 * self._latencies[at], 1) if self._latencies else 0.0)

    async def _call(self, number: int) -> None:
        sent = time.monotonic()
        try:
            infer = self._infer[number % len(self._infer)]
            message = await infer(request(number).SerializeToString(), timeout=self._deadline_s)
        except grpc.aio.AioRpcError as error:
            self._lose(f"request {number}: {error.code().name}: {error.details()}")
        else:
            self._take(number, pb.ModelInferResponse.FromString(message))
        self._latencies.append(time.monotonic() - sent)

    def _take(self, number: int, response: pb.ModelInferResponse) -> None:
        """gRPC itself gives a call no second answer: one that is late would have to come to another request's call."""
        told = response.id
        self.counts.duplicated += told in self._came
        self._came.add(told)
        if told == str(number) and response.raw_output_contents[0] == expected(number):
            self.counts.answered += 1
        else:
            self._lose(f"request {number}: got the answer of {told}: {response.raw_output_contents[0]!r:.80}")

    def _lose(self, problem: str) -> None:
        self.counts.lost += 1
        if len(self.counts.problems) < KEPT_PROBLEMS:
            self.counts.problems.append(f"{time.monotonic() - self._began:.2f} s: {problem}")


def request(number: int) -> pb.ModelInferRequest:
    """One row, 1 to 4 wide, of a number that no other request has (below 2**20: exact in FP32, also 16-fold)."""
    width = 1 + number % 4
    tensor = pb.ModelInferRequest.InferInputTensor(name="input", datatype="FP32", shape=[1, width])
    data = struct.pack(f"<{width}f", *[float(number)] * width)
    return pb.ModelInferRequest(model_name="chain", id=str(number), inputs=[tensor], raw_input_contents=[data])


def expected(number: int) -> bytes:
    width = 1 + number % 4
    return struct.pack(f"<{width}f", *[16.0 * number + 15.0] * width)


class LoadProcess:
    """The load as a child, for as long as the context is open; `counts` has the last word once it is closed."""

    def __init__(self, target: str, *, rate: float, retry: bool = False, deadline_s: float = 20.0) -> None:
        command = [sys.executable, "-m", "tests.chaos.load", target, "--rate", str(rate), "--deadline", str(deadline_s)]
        self._child = subprocess.Popen(
            [*command, *(["--retry"] if retry else [])], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._deadline_s = deadline_s
        self.counts = Counts()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def wait_for_more(self, ends: int) -> None:
        """Until so many more were answered or lost."""
        enough = self._ended() + ends
        wait_for(f"{ends} more answers", lambda: self._ended() >= enough)

    def wait_until_sent(self, sent: int) -> None:
        """Until so many were sent since the start."""
        wait_for(f"{sent} requests were sent", lambda: self.counts.sent >= sent)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._child.stdin is not None:
            self._child.stdin.close()
        try:
            self._child.wait(self._deadline_s + 20.0)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
            raise
        finally:
            self._reader.join(10)
            if self._child.stdout is not None:
                self._child.stdout.close()

    def _ended(self) -> int:
        return self.counts.answered + self.counts.lost

    def _read(self) -> None:
        for line in self._child.stdout or ():
            self.counts = Counts(**json.loads(line))


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", help="host:port of the gateway")
    parser.add_argument("--rate", type=float, default=200.0, help="requests a second")
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--deadline", type=float, default=20.0, help="of each request, seconds")
    parser.add_argument("--retry", action="store_true")
    given = parser.parse_args()
    caller = Caller(given.target, given.rate, given.connections, given.deadline, retry=given.retry)
    stop = asyncio.Event()
    running = asyncio.create_task(caller.run(stop))
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    ended = asyncio.create_task(reader.read())
    while not ended.done():
        print(json.dumps(asdict(caller.counts)), flush=True)
        await asyncio.wait((ended,), timeout=REPORT_EVERY_S)
    stop.set()
    await running
    print(json.dumps(asdict(caller.counts)), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
