"""A fleet without processes: every `observe` moves each replica one phase on. For tests, and for trying a plan out."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from cluster.fleet import Bundle, Node, Sighting
from cluster.state import ServedModel
from cluster.world import Phase, Replica, Stage
from worker.nouns import WorkerStats

NEXT_PHASE = {
    Phase.UNKNOWN: Phase.READY,
    Phase.PENDING: Phase.STARTING,
    Phase.STARTING: Phase.READY,
    Phase.DRAINING: Phase.DRAINED,
}


class SimulatedFleet:
    """`moves`: whether a replica gets on at this look; default: always. `room`: replicas that fit; None: any number.

    figures: what the replicas tell of themselves; tests write it. cpus: of the only node.
    """

    def __init__(
        self, *, moves: Callable[[Replica], bool] = lambda _: True, room: int | None = None, cpus: float = 2.0
    ) -> None:
        self.replicas: dict[str, Replica] = {}
        self.calls: list[tuple[str, str]] = []
        self.figures: dict[str, WorkerStats] = {}
        self.asked_for: tuple[Bundle, ...] = ()
        self._moves = moves
        self._room = room
        self._cpus = cpus
        self._numbers = itertools.count()

    async def observe(self) -> Sighting:
        for replica in list(self.replicas.values()):
            self._advance(replica)
        notes = {replica.stage: "no room" for replica in self.replicas.values() if replica.phase is Phase.PENDING}
        figures = {replica: self.figures[replica] for replica in self.replicas if replica in self.figures}
        node = Node("n", "127.0.0.1", {"CPU": self._cpus})
        return Sighting(tuple(self.replicas.values()), figures=figures, notes=notes, nodes=(node,))

    async def start(self, stage: Stage, served: ServedModel | None = None) -> str:
        number = f"r{stage.revision}-" if stage.revision > 1 else ""
        name = f"{stage.model}/{stage.version}/{stage.index}/{number}{next(self._numbers):04}"
        self.replicas[name] = Replica(name, stage, Phase.PENDING)
        self.calls.append(("start", name))
        return name

    async def leave(self, replica: str) -> None:
        self._change(replica, leaving=True)

    async def tell(self, replica: str, next_stage: Mapping[str, str]) -> None:
        self._change(replica, asked=dict(next_stage))

    async def drain(self, replica: str) -> None:
        self.calls.append(("drain", replica))
        self._change(replica, phase=Phase.DRAINING)

    async def stop(self, replica: str) -> None:
        self.calls.append(("stop", replica))
        self.replicas.pop(replica, None)

    async def ask_for(self, bundles: Sequence[Bundle]) -> None:
        self.asked_for = tuple(bundles)

    async def close(self) -> None:
        pass

    def kill(self, replica: str, why: str = "killed") -> None:
        self._change(replica, phase=Phase.DEAD, why=why)

    def displace(self, replica: str) -> None:
        """What draining its node does."""
        self._change(replica, displaced=True)

    def forget(self) -> None:
        """What a controller's death does: the workers live on, and what was known of them is gone.

        Those that have no process yet are found as such.
        """
        for name, replica in list(self.replicas.items()):
            if replica.phase is Phase.PENDING:
                self._change(name, leaving=False)
            else:
                self._change(name, told=None, asked=None, leaving=False, phase=Phase.UNKNOWN)

    def _advance(self, replica: Replica) -> None:
        if not self._moves(replica):
            return
        if replica.asked is not None:
            self._change(replica.id, told=replica.asked)
        if replica.phase is Phase.PENDING and self._room is not None:
            placed = sum(other.phase is not Phase.PENDING for other in self.replicas.values())
            if placed >= self._room:
                return
        if replica.phase in NEXT_PHASE:
            phase = NEXT_PHASE[replica.phase]
            self._change(replica.id, phase=phase, address=f"host:{replica.id}" if phase is Phase.READY else "")

    def _change(self, replica: str, **values: object) -> None:
        if replica in self.replicas:
            self.replicas[replica] = replace(self.replicas[replica], **values)  # type: ignore[arg-type]
