"""How many replicas of each stage, and where: greedy, the slowest stage first. Pure."""

import heapq
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from cluster.planning.deployment import Demand, ModelPlan
from cluster.planning.machines import Node
from cluster.planning.packing import Room
from cluster.planning.shapes import Shape, need

FILL: Final = 0.8
"""Share of its capacity that a stage is planned for, so that queues stay short."""


class NoRoom(Exception):
    """A replica that must be has no place. The message says whose and why."""


@dataclass(slots=True)
class _Growing:
    demand: Demand
    shape: Shape
    nodes: list[list[str]] = field(default_factory=list)
    capacity: list[float] = field(default_factory=list)
    spread: list[Counter[str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.nodes = [[] for _ in self.shape.stages]
        self.capacity = [0.0 for _ in self.shape.stages]
        self.spread = [Counter() for _ in self.shape.stages]

    @property
    def slowest(self) -> int:
        return min(range(len(self.capacity)), key=self.capacity.__getitem__)

    @property
    def rounds(self) -> float:
        """How many times its rate it bears."""
        return self.capacity[self.slowest] / (self.demand.rate * self.demand.rows)


class Growth:
    """Replicas of several models on the same nodes."""

    def __init__(
        self, demands: Sequence[Demand], chosen: Sequence[Shape], nodes: Sequence[Node], *, tight: bool = False
    ) -> None:
        self._speeds = {node.name: (node.speed, node.gpu_speed) for node in nodes}
        self._room = Room(nodes, tight=tight)
        self._models = [_Growing(demand, shape) for demand, shape in zip(demands, chosen, strict=True)]
        # Large replicas first: small ones still fit between them.
        order = sorted(
            ((model, place) for model in self._models for place in range(len(model.shape.stages))),
            key=lambda one: -one[0].shape.stages[one[1]].memory,
        )
        for model, place in order:
            if not self._add(model, place):
                stage = model.shape.stages[place]
                raise NoRoom(f"{model.demand.model} stage {place} has no place: {self._room.shortage(need(stage))}")

    def until(self, rounds: float) -> bool:
        """Adds replicas until every model bears `rounds` times its rate; False where there is no more room."""
        waiting = [(model.rounds, place) for place, model in enumerate(self._models)]
        heapq.heapify(waiting)
        while waiting:
            reached, place = heapq.heappop(waiting)
            if reached >= rounds:
                return True
            model = self._models[place]
            if not self._add(model, model.slowest):
                return False
            heapq.heappush(waiting, (model.rounds, place))
        return True

    @property
    def rounds(self) -> float:
        """How many times their rates the models bear, the least of them."""
        return min(model.rounds for model in self._models)

    @property
    def least(self) -> int:
        """The model that bears least."""
        return min(range(len(self._models)), key=lambda place: self._models[place].rounds)

    def why_not(self) -> str:
        """What the model that bears least lacks."""
        model = self._models[self.least]
        stage = model.shape.stages[model.slowest]
        return (
            f"{model.demand.model} stage {model.slowest} with {len(model.nodes[model.slowest])} replicas bears "
            f"{model.rounds * model.demand.rate:.1f} requests/s; one more has no place: "
            f"{self._room.shortage(need(stage))}"
        )

    def add_to(self, model: int, stage: int) -> bool:
        """One more replica of this stage; False where there is no room."""
        return self._add(self._models[model], stage)

    def plans(self) -> tuple[ModelPlan, ...]:
        return tuple(
            ModelPlan(
                model.demand.model,
                tuple(
                    replace(stage, nodes=tuple(nodes))
                    for stage, nodes in zip(model.shape.stages, model.nodes, strict=True)
                ),
                model.shape.max_rows,
                measured=model.shape.measured,
            )
            for model in self._models
        )

    def _add(self, model: _Growing, place: int) -> bool:
        stage = model.shape.stages[place]
        if stage.cpus < stage.threads:
            # Stages that share a core cannot work at the same time: they sit apart.
            near: set[str] = set()
            apart = sum(model.spread, Counter[str]())
        else:
            near = {
                name
                for other in (place - 1, place + 1)
                if 0 <= other < len(model.nodes)
                for name in model.nodes[other][-16:]
            }
            apart = model.spread[place]
        name = self._room.place(need(stage), near=near, apart=apart)
        if name is None:
            return False
        speed = self._speeds[name][1 if stage.gpus else 0]
        model.nodes[place].append(name)
        model.spread[place][name] += 1
        model.capacity[place] += model.shape.capacity(place, speed)
        return True
