"""Replicas that tests of the link call: in this process with a scripted backend, or processes that get killed."""

import asyncio
import contextlib
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field

from worker.link import Link, LinkLimits
from worker.nouns import Answer, Load, Tensor, Work
from worker.stream_server import StreamServer

TOKEN = "the cluster's"
PATIENT = LinkLimits(patience_s=10.0)
"""A busy machine may take long to connect."""


def work(data: bytes = b"x", seconds: float = 10.0) -> Work:
    return Work((Tensor("x", "UINT8", (1, len(data)), data),), time.monotonic() + seconds)


async def echo(given: Work) -> Answer:
    return Answer(given.tensors)


@dataclass
class Scripted:
    """A backend that holds every request until it is released, and says what happened to it."""

    arrived: asyncio.Queue[Work] = field(default_factory=asyncio.Queue)
    cancelled: asyncio.Queue[Work] = field(default_factory=asyncio.Queue)
    release: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(self, given: Work) -> Answer:
        self.arrived.put_nowait(given)
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.cancelled.put_nowait(given)
            raise
        return Answer(given.tensors)


@contextlib.asynccontextmanager
async def replica(
    serve: Callable[[Work], Awaitable[Answer]] = echo, load: Callable[[], Load] = Load
) -> AsyncIterator[tuple[StreamServer, str]]:
    server = StreamServer(TOKEN, serve, load)
    try:
        yield server, await server.start()
    finally:
        await server.stop()


@contextlib.asynccontextmanager
async def link_to(*addresses: str, limits: LinkLimits = PATIENT, token: str = TOKEN) -> AsyncIterator[Link]:
    link = Link(token, limits)
    link.route({f"r{number}": address for number, address in enumerate(addresses)})
    try:
        yield link
    finally:
        await link.close()


@contextlib.contextmanager
def process(behaviour: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.worker.echo", TOKEN, behaviour], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    try:
        yield child, child.stdout.readline().strip()
    finally:
        child.kill()
        child.wait(10)
        child.stdout.close()


async def line_of(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    return (await asyncio.to_thread(child.stdout.readline)).strip()
