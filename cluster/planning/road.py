"""What a request costs on its way besides the shard's own computing: CPU seconds of each process that handles it."""

from collections.abc import Iterable, Set
from dataclasses import asdict, dataclass
from typing import Final, Self

from worker.profile import Profile


@dataclass(frozen=True, slots=True)
class Road:
    """CPU seconds, measured with a model that computes nothing (docs/planning.md says how).

    worker_in, worker_out: a replica's event loop, for a request that comes and for an answer that goes.
    batch: the same for a batch, however large; hop: for a batch that goes on to the next stage.
    turn: what a batch takes of its compute thread beside the shard's run: it waits for Python's lock, and those whom it
      wakes take its core. 0.4 to 1 ms were seen by the clock, 0.1 to 0.25 ms of them CPU time.
    turn_byte: the same for a byte of the batch's inputs, which are put together in that thread.
    gateway_in, gateway_out: a gateway process, for a request and for an answer. client: a client, for both (one of
      grpc.aio, with its threads).
    *_wake: what it costs to begin again where the process had nothing to do; a busy one does not pay it.
    *_byte: for a byte that the process takes or gives on.
    replica: cores that a worker takes all the time, by Ray's threads in it.
    head: cores that Ray's own processes and the controller take all the time on their node, taken to be the first
      gateway's.
    """

    worker_in: float = 5.2e-5
    worker_out: float = 4.3e-5
    worker_wake: float = 2.3e-4
    worker_byte: float = 7e-10
    batch: float = 1.4e-4
    turn: float = 4.5e-4
    turn_byte: float = 3.5e-10
    hop: float = 1.5e-4
    gateway_in: float = 7.3e-5
    gateway_out: float = 5e-5
    gateway_wake: float = 2.1e-4
    gateway_byte: float = 1.7e-9
    client: float = 1.3e-4
    client_wake: float = 2.5e-4
    client_byte: float = 1.5e-9
    replica: float = 0.008
    head: float = 0.07

    def times(self, slower: float) -> Self:
        """On a machine where everything takes so many times as long."""
        return type(self)(**{name: seconds * slower for name, seconds in asdict(self).items()})


DEFAULT_ROAD: Final = Road()

MEASURED_WITH_S: Final = 6.8e-5
"""What `compressor.profiling.road_seconds` gives where a road is as long as `Road` says: found on a machine where a
road took 1.6 times that, by grpc.aio then; what our own streams take of it was found on another, in turns."""


def road_on(profiles: Iterable[Profile], devices: Set[str]) -> Road:
    """The road on the slowest of these kinds of machines, by what the profiles say of them."""
    known = [
        device.road_s
        for profile in profiles
        for name, device in profile.devices.items()
        if name in devices and device.road_s is not None
    ]
    return DEFAULT_ROAD.times(max(known) / MEASURED_WITH_S) if known else DEFAULT_ROAD
