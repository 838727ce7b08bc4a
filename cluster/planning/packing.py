"""Puts replicas on nodes: never more than fits; stages that talk together, replicas of one stage apart. Pure."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from cluster.planning.machines import Node

_LOOKED_AT: Final = 48
"""Nodes that are compared for one replica where there are more: enough to choose well, few enough for thousands."""


@dataclass(frozen=True, slots=True)
class Need:
    """What one replica takes: of a node whose cores (or, with `gpus`, whose GPUs) are `device`."""

    device: str
    cpus: float
    memory: int
    gpus: int = 0
    gpu_memory: int = 0


class Room:
    """What is free on each node. `tight`: fill nodes that are in use first; else spread."""

    def __init__(self, nodes: Sequence[Node], *, tight: bool = False) -> None:
        self._nodes = tuple(nodes)
        self._tight = tight
        self._places = {node.name: place for place, node in enumerate(nodes)}
        self._cpus = [node.cpus for node in nodes]
        self._memory = [node.memory for node in nodes]
        self._gpus = [node.gpus for node in nodes]
        self._used: set[int] = set()
        self._next: dict[Need, int] = {}
        self._full: set[Need] = set()

    def fits(self, place: int, need: Need) -> bool:
        node = self._nodes[place]
        kind = node.gpu_device if need.gpus else node.device
        return (
            kind == need.device
            and self._cpus[place] + 1e-9 >= need.cpus
            and self._memory[place] >= need.memory
            and self._gpus[place] >= need.gpus
            and (not need.gpus or node.gpu_memory >= need.gpu_memory)
        )

    def place(self, need: Need, *, near: Iterable[str] = (), apart: Counter[str] | None = None) -> str | None:
        """The node that takes one more replica, which is taken off its room; None: nowhere fits.

        near: nodes of the stages that it talks with. apart: how many replicas of its stage each node has.
        """
        if need in self._full:
            return None
        close = {self._places[name] for name in near}
        candidates = [place for place in self._looked_at(need, close) if self.fits(place, need)]
        if not need.gpus:
            candidates = [place for place in candidates if not self._nodes[place].gpus]
        if not candidates:
            candidates = [place for place in range(len(self._nodes)) if self.fits(place, need)]
        if not candidates:
            self._full.add(need)
            return None
        same = apart if apart is not None else Counter[str]()

        def unwanted(place: int) -> tuple[float, ...]:
            node = self._nodes[place]
            crowd = same[node.name] / node.cpus
            left = self._cpus[place] - need.cpus
            # Whoever needs no GPU leaves the cores beside one to those that do.
            misplaced = node.gpus > 0 and not need.gpus
            if self._tight:
                return (place not in self._used, misplaced, crowd, place not in close, left)
            return (misplaced, crowd, place not in close, -left, -node.speed)

        chosen = min(candidates, key=unwanted)
        self._take(chosen, need)
        return self._nodes[chosen].name

    def _looked_at(self, need: Need, close: set[int]) -> Iterable[int]:
        count = len(self._nodes)
        if count <= 2 * _LOOKED_AT:
            return range(count)
        first = self._next.get(need, 0)
        self._next[need] = (first + _LOOKED_AT // 4) % count
        some = {(first + step) % count for step in range(_LOOKED_AT)}
        return some | set(list(close)[:_LOOKED_AT])

    def take(self, name: str, need: Need) -> None:
        """Takes off the room of a node what a replica that it has already needs."""
        self._take(self._places[name], need)

    def _take(self, place: int, need: Need) -> None:
        self._cpus[place] -= need.cpus
        self._memory[place] -= need.memory
        self._gpus[place] -= need.gpus
        self._used.add(place)

    def shortage(self, need: Need) -> str:
        """Why no node takes such a replica, in words."""
        kind = [
            place
            for place, node in enumerate(self._nodes)
            if (node.gpu_device if need.gpus else node.device) == need.device and (not need.gpus or node.gpus)
        ]
        if not kind:
            return f"no node has a device {need.device!r}"
        most_memory = max(self._memory[place] for place in kind)
        most_cpus = max(self._cpus[place] for place in kind)
        if need.gpus and max(self._gpus[place] for place in kind) < need.gpus:
            return "every GPU is taken"
        if need.gpus and max(self._nodes[place].gpu_memory for place in kind) < need.gpu_memory:
            return f"it needs {_gib(need.gpu_memory)} of GPU memory, the largest GPU has less"
        if most_memory < need.memory:
            return f"it needs {_gib(need.memory)} of memory, the most that is free on a node is {_gib(most_memory)}"
        if most_cpus < need.cpus:
            return f"it needs {need.cpus:g} CPUs, the most that are free on a node are {most_cpus:g}"
        return "CPUs and memory are free, but not on the same node"


def _gib(nbytes: int) -> str:
    return f"{nbytes / 2**30:.2f} GiB"
