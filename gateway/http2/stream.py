"""One call on a connection: what has come of it, and what is still to be sent."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from time import monotonic
from typing import Final

from gateway.http2.call import PREFIX_BYTES, Head, announced_bytes, unpacked
from worker.errors import InvalidRequest, Overloaded

MAX_INBOX: Final = 256
MAX_INBOX_BYTES: Final = 64 << 10
"""What a streaming call may have sent that is not read yet: messages, and their bytes."""

PIECE_BYTES: Final = 64
"""What a piece of a request takes in memory beside its bytes."""


class Stream:
    """`ended`: the client has sent all. `window`: bytes that the client lets us send. `tail`: how the call ends;
    set once, before it is sent. `closed`: nothing more is sent. `counted`: bytes that a request takes here while it
    arrives; `held`: bytes of a streaming call's messages that wait to be read. `moved_at`: when some of an answer that
    waits was last sent, `heard_at`: when the last bytes that came of it were read, monotonic seconds. `written`: who is
    told once its end was written.
    """

    __slots__ = (
        "announced",
        "arrival",
        "began",
        "begun_answer",
        "closed",
        "counted",
        "ended",
        "head",
        "heard_at",
        "held",
        "id",
        "inbox",
        "moved_at",
        "parts",
        "pending",
        "received",
        "sent_all",
        "tail",
        "task",
        "unacknowledged",
        "window",
        "written",
    )

    def __init__(self, stream_id: int, head: Head, window: int) -> None:
        self.id = stream_id
        self.head = head
        self.window = window
        self.began = self.moved_at = self.heard_at = monotonic()
        self.ended = False
        self.parts: list[bytes] = []
        self.received = 0
        self.counted = 0
        self.held = 0
        self.closed = False
        self.announced = -1
        self.unacknowledged = 0
        self.task: asyncio.Task[None] | None = None
        self.begun_answer = False
        self.pending: deque[bytes | memoryview] = deque()
        self.tail = b""
        self.sent_all: asyncio.Future[None] | None = None
        self.inbox: deque[bytes] = deque()
        self.arrival: asyncio.Future[None] | None = None
        self.written: Callable[[float], None] | None = None

    @property
    def metadata(self) -> Mapping[str, str]:
        return self.head.metadata

    def time_remaining(self) -> float | None:
        if self.head.timeout_s is None:
            return None
        return max(0.0, self.began + self.head.timeout_s - monotonic())

    def tell_when_written(self, told: Callable[[float], None]) -> None:
        self.written = told

    def take(self, data: bytes, max_bytes: int) -> None:
        """Keeps a piece of the message.

        Raises `TooLarge` as soon as its length is known, and `InvalidRequest` as soon as there is more than that.
        """
        self.parts.append(data)
        self.received += len(data)
        if self.announced < 0 and self.received >= PREFIX_BYTES:
            start = data if len(self.parts) == 1 else b"".join(self.parts)
            self.announced = announced_bytes(start[:PREFIX_BYTES], max_bytes)
        if self.announced >= 0 and self.received > PREFIX_BYTES + self.announced:
            self.parts.clear()
            raise InvalidRequest(
                f"the call holds {self.received - PREFIX_BYTES} bytes or more after its first prefix, which announces "
                f"{self.announced}: it takes one message"
            )

    def taken(self) -> bytes:
        parts, self.parts = self.parts, []
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def take_messages(self, data: bytes) -> None:
        """Keeps a piece of a streaming call and hands on the messages that are whole.

        Raises `Overloaded` where too much waits to be read, and as `announced_bytes` and `unpacked` do.
        """
        self.parts.append(data)
        rest = self.taken()
        while len(rest) >= PREFIX_BYTES:
            end = PREFIX_BYTES + announced_bytes(rest[:PREFIX_BYTES], MAX_INBOX_BYTES)
            if len(rest) < end:
                break
            message = rest[PREFIX_BYTES:end]
            message = unpacked(message, self.head.encoding, MAX_INBOX_BYTES) if rest[0] else message
            self.inbox.append(message)
            self.held += len(message)
            rest = rest[end:]
            if len(self.inbox) > MAX_INBOX or self.held > MAX_INBOX_BYTES:
                raise Overloaded("the call has sent more than is being read; wait for answers in between")
        self.parts = [rest]
        self.wake()

    def wake(self) -> None:
        """A message came, or the last has."""
        if self.arrival is not None and not self.arrival.done():
            self.arrival.set_result(None)

    async def messages(self) -> AsyncIterator[bytes]:
        """Of a streaming call, as they come; for one reader."""
        while True:
            while self.inbox:
                message = self.inbox.popleft()
                self.held -= len(message)
                yield message
            if self.ended:
                return
            self.arrival = asyncio.get_running_loop().create_future()
            await self.arrival
