"""What the controller needs of what runs the workers. `RayFleet` is the real one, `SimulatedFleet` the shipped fake."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from cluster.state import ServedModel
from cluster.world import Replica, Stage
from worker.nouns import WorkerStats
from worker.per_stage import MEMORY


@dataclass(frozen=True, slots=True)
class Node:
    """A living machine of the cluster. resources: total of each kind, e.g. CPU. taken: by our replicas.

    drained: it is to go; nothing new is placed on it. head: it holds Ray's own services, and never goes by itself.
    """

    id: str
    address: str
    resources: Mapping[str, float]
    labels: Mapping[str, str] = field(default_factory=dict)
    taken: Mapping[str, float] = field(default_factory=dict)
    replicas: int = 0
    drained: bool = False
    head: bool = False


@dataclass(frozen=True, slots=True)
class Bundle:
    """What a replica takes of a node, by resource, and the labels that the node must have."""

    resources: Mapping[str, float]
    labels: Mapping[str, str] = field(default_factory=dict)


def shown(bundles: Sequence[Bundle]) -> str:
    """What so many replicas take, alike ones together: "2 x (CPU 1, memory 0.5 GiB)"."""
    return " and ".join(f"{count} x ({what})" for what, count in _kinds(bundles).items())


def alike(some: Sequence[Bundle], others: Sequence[Bundle]) -> bool:
    """Whether they are of the same kinds, of each less than twice and more than half as many."""
    one, other = _kinds(some), _kinds(others)
    return one.keys() == other.keys() and all(other[kind] / 2 < one[kind] < other[kind] * 2 for kind in one)


def _kinds(bundles: Sequence[Bundle]) -> Counter[str]:
    return Counter(
        ", ".join(
            [*(f"{kind} {_amount(kind, amount)}" for kind, amount in sorted(one.resources.items()))]
            + [f"{name}={value}" for name, value in sorted(one.labels.items())]
        )
        for one in bundles
    )


def _amount(kind: str, amount: float) -> str:
    return f"{amount / 2**30:.3g} GiB" if kind == MEMORY else f"{amount:g}"


@dataclass(frozen=True, slots=True)
class Sighting:
    """What one look at the fleet gave. notes: why a stage's replicas are not ready, where more is known than that."""

    replicas: tuple[Replica, ...]
    figures: Mapping[str, WorkerStats] = field(default_factory=dict)
    notes: Mapping[Stage, str] = field(default_factory=dict)
    nodes: tuple[Node, ...] = ()


class Fleet(Protocol):
    """Every method returns within seconds; what takes longer goes on, and shows in a later `observe`."""

    async def observe(self) -> Sighting: ...

    async def start(self, stage: Stage, served: ServedModel) -> str:
        """Starts one replica of a stage of `served` and returns its id."""
        ...

    async def leave(self, replica: str) -> None: ...

    async def tell(self, replica: str, next_stage: Mapping[str, str]) -> None: ...

    async def drain(self, replica: str) -> None: ...

    async def stop(self, replica: str) -> None: ...

    async def ask_for(self, bundles: Sequence[Bundle]) -> None:
        """Tells who adds nodes what is wanted beyond what was started. Replaces what was asked for before."""
        ...

    async def close(self) -> None:
        """Lets go of the workers; they live on."""
        ...
