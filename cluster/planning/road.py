"""What a request costs on its way besides the shard's own computing: CPU seconds of each process that handles it."""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Road:
    """CPU seconds, measured with a model that computes nothing (docs/planning.md says how).

    worker_in, worker_out: a replica's event loop, for a request that comes and for an answer that goes.
    batch: the same for a batch, however large; hop: for a batch that goes on to the next stage.
    gateway_in, gateway_out: a gateway process, for a request and for an answer. client: a client, for both.
    *_wake: what it costs to begin again where the process had nothing to do; a busy one does not pay it.
    *_byte: for a byte that the process takes or gives on.
    """

    worker_in: float = 6e-5
    worker_out: float = 5e-5
    worker_wake: float = 3.5e-4
    worker_byte: float = 1.0e-9
    batch: float = 1.5e-4
    hop: float = 2.5e-4
    gateway_in: float = 8e-5
    gateway_out: float = 5.5e-5
    gateway_wake: float = 2.6e-4
    gateway_byte: float = 2.2e-9
    client: float = 7e-5
    client_wake: float = 1.5e-4
    client_byte: float = 1.5e-9


DEFAULT_ROAD: Final = Road()
