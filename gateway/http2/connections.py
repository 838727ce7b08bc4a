"""The open connections of a process."""

import asyncio
from collections.abc import Iterator
from math import inf
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway.http2.connection import Connection


class Connections:
    """`limit`: how many there may be. `none`: set while there is none."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._open: set[Connection] = set()
        self._leaving = False
        self.none = asyncio.Event()
        self.none.set()

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> "Iterator[Connection]":
        """Those that are open now; they may close meanwhile."""
        return iter(list(self._open))

    def add(self, connection: "Connection") -> bool:
        """Whether there is room for one more, that of the connection which has been idle for longest if need be."""
        if len(self._open) >= self._limit and not self._make_room():
            return False
        self._open.add(connection)
        self.none.clear()
        if self._leaving:
            asyncio.get_running_loop().call_soon(connection.leave)
        return True

    def discard(self, connection: "Connection") -> None:
        self._open.discard(connection)
        if not self._open:
            self.none.set()

    def leave(self) -> None:
        """Tells each client to call elsewhere, and those that connect after this one."""
        self._leaving = True
        for connection in self:
            connection.leave()

    def _make_room(self) -> bool:
        idle = [(connection.idle_since, connection) for connection in self._open]
        since, longest = min(idle, key=lambda one: inf if one[0] is None else one[0])
        if since is None:
            return False
        longest.make_room()
        self._open.discard(longest)  # it ends a turn of the loop later: until then others would count on its room
        return True
