"""The open connections of a process."""

import asyncio
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway.connection import Connection


class Connections:
    """`limit`: how many there may be. `none`: set while there is none."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._open: set[Connection] = set()
        self.none = asyncio.Event()
        self.none.set()

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> "Iterator[Connection]":
        """Those that are open now; they may close meanwhile."""
        return iter(list(self._open))

    def add(self, connection: "Connection") -> bool:
        """Whether there is room for one more."""
        if len(self._open) >= self._limit:
            return False
        self._open.add(connection)
        self.none.clear()
        return True

    def discard(self, connection: "Connection") -> None:
        self._open.discard(connection)
        if not self._open:
            self.none.set()
