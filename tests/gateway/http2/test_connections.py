"""How many connections there may be, also where many come before any that must go has ended."""

from gateway.http2.call import Methods
from gateway.http2.calls import Desk
from gateway.http2.connection import Connection
from gateway.http2.connections import Connections
from gateway.settings import ServerLimits
from tests.gateway.http2.test_mutated_frames import Wire


async def test_a_burst_gets_no_more_connections_than_there_may_be() -> None:
    desk, connections = Desk(Methods({}, {}), ServerLimits()), Connections(2)
    arrived = [(Connection(desk, connections), Wire()) for _ in range(6)]
    for connection, wire in arrived:
        connection.connection_made(wire)
    assert [wire.closed for _, wire in arrived] == [True] * 4 + [False] * 2
    assert len(connections) == 2
    for connection, _ in arrived:
        connection.connection_lost(None)
    assert len(connections) == 0
    assert connections.none.is_set()
    desk.close()
