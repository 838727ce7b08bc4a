"""What a gateway, and each of its processes, is told when it starts."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Self

LISTENING: Final = "listening\n"
FROZEN_S: Final = 5.0
"""Seconds. What it held is asked anew all at once: after 10 s that met a model's bound of requests in flight."""
LOG_FORMAT: Final = "%(asctime)s %(levelname)s gateway[%(process)d] %(message)s"


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """Bounds of one process.

    max_message_bytes: of a request; a larger one is refused before it is read.
    max_connections: a further one takes the place of that which has been idle for longest; without one, it is closed.
    max_streams: calls at once on one connection; a client's library holds the next ones back.
    max_calls: calls of one message at work at once, on all connections; further ones are answered RESOURCE_EXHAUSTED.
    max_arriving, max_receiving_bytes: calls that are on their way in (streaming calls count as long as they last), and
        their bytes. A connection gets at most as much as it leaves free, alone a half; what goes over is answered
        RESOURCE_EXHAUSTED.
    receive_s: longest that one request may be on its way in.
    greeting_s: longest wait for a connection's first bytes.
    keepalive_s, keepalive_timeout_s: a silent client is probed this often, and dropped this long after a probe.
    idle_s: a connection without a call is closed after this; the client's library opens it again when it needs it.
    rush_per_s: frames that lead to nothing, so many a second for long on one connection; it is hung up on beyond that.
    """

    max_message_bytes: int = 64 << 20
    max_connections: int = 1024
    max_streams: int = 1024
    max_calls: int = 4096
    max_arriving: int = 16384
    max_receiving_bytes: int = 512 << 20
    receive_s: float = 60.0
    greeting_s: float = 10.0
    keepalive_s: float = 60.0
    keepalive_timeout_s: float = 20.0
    idle_s: float = 1800.0
    rush_per_s: float = 1000.0


@dataclass(frozen=True, slots=True)
class GatewaySettings:
    """How to run a gateway. Times in seconds; `ready_file` None: none is written.

    notice_s, finish_s: see `ProcessSettings`.
    frozen_s: a process whose event loop has not turned for so long is killed, and another is started.
    """

    listen: str
    processes: int
    control_file: Path
    ready_file: Path | None
    notice_s: float
    finish_s: float
    log_level: str
    limits: ServerLimits
    frozen_s: float = FROZEN_S


@dataclass(frozen=True, slots=True)
class ProcessSettings:
    """What one process needs to know.

    address: host:port, the same for all of them.
    statistics_file: descriptor of the shared region, inherited.
    process: which one of `processes` it is, from 0.
    supervisor: its parent's process id.
    notice_s: after the first SIGTERM, how long it still takes calls while it says that it is not ready, seconds.
    finish_s: then, how long the calls at work may take, seconds.
    """

    address: str
    control_file: str
    statistics_file: int
    processes: int
    process: int
    supervisor: int
    notice_s: float
    finish_s: float
    log_level: str
    limits: ServerLimits

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        fields = json.loads(text)
        return cls(**{**fields, "limits": ServerLimits(**fields["limits"])})
