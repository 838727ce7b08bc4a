import asyncio

import pytest

from worker.frames import Unpacker, cancel_frame
from worker.nouns import Load
from worker.stream_writer import StreamWriter, quorum


@pytest.mark.parametrize(
    ("under_way", "busy", "frames"),
    [
        (1, 1.0, 0),  # a lone caller never waits
        (7, 1.0, 0),
        (8, 1.0, 4),
        (32, 0.5, 16),
        (32, 0.1, 0),  # an idle loop has nothing to gain
    ],
)
def test_a_message_waits_for_half_of_a_busy_stream(under_way: int, busy: float, frames: int) -> None:
    assert quorum(under_way, busy) == frames


async def test_what_is_sent_while_a_write_is_under_way_leaves_in_one_message() -> None:
    messages: asyncio.Queue[bytes] = asyncio.Queue()
    go = asyncio.Event()

    async def write(message: bytes) -> None:
        messages.put_nowait(message)
        await go.wait()

    writer = StreamWriter(write, lambda: Load(3), lambda: 1)
    running = asyncio.create_task(writer.run())
    writer.send(cancel_frame(0))
    first = await messages.get()
    for number in range(1, 6):
        writer.send(cancel_frame(number))
    assert not writer.idle
    go.set()
    unpacker = Unpacker()
    assert len(unpacker.feed(first)) == 1
    assert len(unpacker.feed(await messages.get())) == 5
    assert unpacker.load == Load(3)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert writer.idle
