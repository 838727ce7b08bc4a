"""What carrying a request costs on this machine: a small one's way to a worker and back, without any computing."""

import asyncio
import secrets
import time
from typing import Final

from worker.link import Link
from worker.nouns import Answer, Load, Tensor, Work
from worker.stream_server import StreamServer

CALLERS: Final = 16
REQUESTS: Final = 1000
ROUNDS: Final = 9
WITHIN_S: Final = 60.0


def road_seconds() -> float:
    """CPU seconds of a request, of both ends together: link, stream, frames, event loop; the least of some rounds."""
    return asyncio.run(_measured())


async def _measured() -> float:
    token = secrets.token_hex(16)
    server = StreamServer(token, _echo, Load)
    link = Link(token)
    try:
        link.route({"echo": await server.start()})
        await _round(link)
        return min([await _round(link) for _ in range(ROUNDS)])
    finally:
        await link.close()
        await server.stop()


async def _round(link: Link) -> float:
    began = time.process_time()
    await asyncio.gather(*(_caller(link, REQUESTS // CALLERS) for _ in range(CALLERS)))
    return (time.process_time() - began) / (REQUESTS // CALLERS * CALLERS)


async def _caller(link: Link, requests: int) -> None:
    tensor = Tensor("x", "UINT8", (1, 1024), bytes(1024))
    for _ in range(requests):
        await link.call(Work((tensor,), time.monotonic() + WITHIN_S))


async def _echo(work: Work) -> Answer:
    return Answer(work.tensors)
