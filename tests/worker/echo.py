"""A process that serves the data plane: `python -m tests.worker.echo TOKEN BEHAVIOUR`; prints its address.

echo: answers with what came. slow: after 0.2 s. hang: never answers, says "got N" on standard output for each request.
"""

import asyncio
import sys

import uvloop

from worker.nouns import Answer, Load, Work
from worker.stream_server import StreamServer


async def main(token: str, behaviour: str) -> None:
    got = 0

    async def serve(work: Work) -> Answer:
        nonlocal got
        got += 1
        if behaviour == "hang":
            print(f"got {got}", flush=True)
            await asyncio.Event().wait()
        if behaviour == "slow":
            await asyncio.sleep(0.2)
        return Answer(work.tensors)

    server = StreamServer(token, serve, lambda: Load(0, 0.0))
    print(await server.start(), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main(*sys.argv[1:]))
