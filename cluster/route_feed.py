"""Hands the newest route table to everyone who watches. A slow watcher skips tables; nothing queues up."""

import asyncio
from collections.abc import AsyncIterator

from protos import control_pb2


class RouteFeed:
    """Belongs to one event loop."""

    def __init__(self) -> None:
        self.table: control_pb2.RouteTable | None = None
        self._changed = asyncio.Event()

    def publish(self, table: control_pb2.RouteTable) -> None:
        self.table = table
        self._changed.set()
        self._changed = asyncio.Event()

    async def watch(self) -> AsyncIterator[control_pb2.RouteTable]:
        """The table now (once there is one), and again whenever it changed. Never ends by itself."""
        sent: control_pb2.RouteTable | None = None
        while True:
            changed, table = self._changed, self.table
            if table is not None and table is not sent:
                sent = table
                yield table
            else:
                await changed.wait()
