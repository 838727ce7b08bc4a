"""Tries a choice of shapes: gives them replicas and nodes, serves them in the simulator, scores the result. Pure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from cluster.planning.deployment import Demand, ModelPlan, Prediction, StagePlan
from cluster.planning.load import Closed, Load, Open
from cluster.planning.machines import Node
from cluster.planning.replicas import FILL, Growth, NoRoom
from cluster.planning.shapes import Shape
from cluster.planning.simulator import Setting, simulate

Goal = Literal["rate", "max_throughput", "min_nodes"]

SIMULATED_REQUESTS: Final = 3_000
"""Of each model, in one simulation; longer ones change a p99 by less than runs of the real system differ."""
ALONE_REQUESTS: Final = 100
"""Of a model that is asked for seldom, one after the other."""
CORE_REPLICAS: Final = 24
"""A model with more replicas is simulated as a slice of so many, with its share of the load."""


@dataclass(frozen=True, slots=True)
class Objective:
    """goal: "rate": the demands' rates on the fewest cores; "min_nodes": on the fewest nodes; "max_throughput": as many
    times the demands' rates as possible.

    callers: with "max_throughput", how many clients wait for their answers at the same time; None: twice as many as
      fill every replica's batch, or 64 where that is more.
    """

    goal: Goal
    callers: int | None = None


@dataclass(frozen=True, slots=True)
class Tried:
    """score: less is better; of two with the same objective, both told by their predictions.

    full: with "max_throughput", what the plans give when no latency is asked for.
    """

    plans: tuple[ModelPlan, ...]
    predictions: tuple[Prediction, ...]
    holds: bool
    score: tuple[float, ...]
    missing: str = ""
    full: tuple[Prediction, ...] = ()


@dataclass(frozen=True, slots=True)
class Judge:
    demands: Sequence[Demand]
    nodes: Sequence[Node]
    objective: Objective
    setting: Setting

    def judge(self, chosen: Sequence[Shape]) -> Tried:
        """Raises `NoRoom`."""
        match self.objective.goal:
            case "max_throughput":
                return self._most(chosen)
            case "rate":
                return self._enough(chosen, self.nodes)
        return self._fewest(chosen)

    def _most(self, chosen: Sequence[Shape]) -> Tried:
        growth = Growth(self.demands, chosen, self.nodes)
        growth.until(float("inf"))
        plans = growth.plans()
        loads: list[Load] = [Closed(self._callers(one)) for one in plans]
        if len(plans) > 1:
            # Callers that wait would give each model as much as it can take: their rates have a ratio to keep.
            rounds = 0.95 * growth.rounds
            loads = [Open(demand.rate * rounds, demand.variation) for demand in self.demands]
        predictions = self._predict(plans, loads, self.nodes)
        held = all(
            demand.p99_s is None or prediction.p99_s <= demand.p99_s
            for demand, prediction in zip(self.demands, predictions, strict=True)
        )
        if not held:
            return replace(self._most_in_time(plans, growth.rounds), full=predictions)
        return Tried(plans, predictions, True, self._score_of_most(plans, predictions), full=predictions)

    def _score_of_most(self, plans: Sequence[ModelPlan], predictions: Sequence[Prediction]) -> tuple[float, ...]:
        rounds = min(
            prediction.rate / demand.rate for demand, prediction in zip(self.demands, predictions, strict=True)
        )
        return -rounds, sum(one.cpus for one in plans)

    def _most_in_time(self, plans: tuple[ModelPlan, ...], rounds: float) -> Tried:
        """The most that these replicas bear with the latency that was asked for, by bisection."""
        low, high = 0.0, rounds
        best: tuple[Prediction, ...] | None = None
        for _ in range(6):
            middle = (low + high) / 2
            demands = [replace(demand, rate=demand.rate * middle) for demand in self.demands]
            predictions = self._predict(plans, [Open(one.rate, one.variation) for one in demands], self.nodes)
            if all(one.holds(demand) for one, demand in zip(predictions, demands, strict=True)):
                low, best = middle, predictions
            else:
                high = middle
        if best is None:
            worst = max(prediction.p99_s for prediction in predictions)
            return Tried(plans, predictions, False, (0.0,), f"a p99 of {1e3 * worst:.0f} ms at {high:.2g} of its load")
        return Tried(plans, best, True, self._score_of_most(plans, best))

    def _enough(self, chosen: Sequence[Shape], nodes: Sequence[Node], *, tight: bool = False) -> Tried:
        """As few replicas as bear the rates; more where the simulation says that they do not suffice."""
        growth = Growth(self.demands, chosen, nodes, tight=tight)
        enough = growth.until(1.0 / FILL) or growth.rounds >= 1.0
        if not enough:
            raise NoRoom(growth.why_not())
        tried = self._tried(growth.plans(), nodes)
        for _ in range(8):
            if tried.holds:
                return tried
            if not self._relieve(growth, tried):
                break
            tried = self._tried(growth.plans(), nodes)
        return tried

    def _relieve(self, growth: Growth, tried: Tried) -> bool:
        """One more replica of the busiest stage of each model that does not hold."""
        grown = False
        for place, (demand, prediction) in enumerate(zip(self.demands, tried.predictions, strict=True)):
            if not prediction.holds(demand):
                busiest = max(range(len(prediction.busy)), key=prediction.busy.__getitem__)
                grown = growth.add_to(place, busiest) or grown
        return grown

    def _fewest(self, chosen: Sequence[Shape]) -> Tried:
        """Bisects for the least number of nodes, the largest first, on which `_enough` finds enough."""
        ordered = sorted(self.nodes, key=lambda node: (-node.gpus, -node.cpus * node.speed, -node.memory, node.name))
        low, high = 1, len(ordered)
        best = self._enough(chosen, ordered, tight=True)
        while low < high:
            middle = (low + high) // 2
            try:
                tried = self._enough(chosen, ordered[:middle], tight=True)
            except NoRoom:
                low = middle + 1
                continue
            if tried.holds:
                best, high = tried, middle
            else:
                low = middle + 1
        return best

    def _tried(self, plans: tuple[ModelPlan, ...], nodes: Sequence[Node]) -> Tried:
        loads = [Open(demand.rate, demand.variation) for demand in self.demands]
        predictions = self._predict(plans, loads, nodes)
        missing = [
            f"{demand.model}: {prediction.rate:.1f} of {demand.rate:g} requests/s, p99 {1e3 * prediction.p99_s:.0f} ms"
            for demand, prediction in zip(self.demands, predictions, strict=True)
            if not prediction.holds(demand)
        ]
        cpus = sum(one.cpus for one in plans)
        gpus = sum(stage.gpus * stage.replicas for one in plans for stage in one.stages)
        used = len({name for one in plans for name in one.nodes})
        late = max(prediction.p99_s for prediction in predictions)
        order = (used, gpus, cpus, late) if self.objective.goal == "min_nodes" else (gpus, cpus, used, late)
        return Tried(plans, predictions, not missing, tuple(map(float, order)), "; ".join(missing))

    def _callers(self, plan: ModelPlan) -> int:
        if self.objective.callers is not None:
            return self.objective.callers
        return max(64, 2 * plan.max_rows * plan.stages[0].replicas)

    def _predict(
        self, plans: Sequence[ModelPlan], loads: Sequence[Load], nodes: Sequence[Node]
    ) -> tuple[Prediction, ...]:
        used = {name for one in plans for name in one.nodes}
        hosts = tuple(node for node in nodes if node.name in used or node.name in self.setting.gateways)
        if sum(stage.replicas for one in plans for stage in one.stages) > CORE_REPLICAS:
            return tuple(
                self._slice(demand, one, load, hosts)
                for demand, one, load in zip(self.demands, plans, loads, strict=True)
            )
        return self._simulated(self.demands, plans, loads, hosts)

    def _slice(self, demand: Demand, plan: ModelPlan, load: Load, nodes: Sequence[Node]) -> Prediction:
        """A model of many replicas alone, as a slice of them with its share of the load: they are alike."""
        parts = max(1, round(sum(stage.replicas for stage in plan.stages) / CORE_REPLICAS))
        parts = min(parts, *(stage.replicas for stage in plan.stages))
        stages = tuple(_every(stage, parts) for stage in plan.stages)
        share = [len(small.nodes) / stage.replicas for small, stage in zip(stages, plan.stages, strict=True)]
        part = min(share)
        if isinstance(load, Closed):
            smaller: Load = Closed(max(1, round(load.callers * part)))
        else:
            smaller = replace(load, rate=load.rate * part)
        names = {name for stage in stages for name in stage.nodes}
        hosts = [node for node in nodes if node.name in names or node.name in self.setting.gateways]
        (found,) = self._simulated([demand], [replace(plan, stages=stages)], [smaller], hosts)
        return replace(found, rate=found.rate / part)

    def _simulated(
        self, demands: Sequence[Demand], plans: Sequence[ModelPlan], loads: Sequence[Load], nodes: Sequence[Node]
    ) -> tuple[Prediction, ...]:
        slowest = max(alone_s(demand, one) for demand, one in zip(demands, plans, strict=True))
        warm_up = max(0.2, 5 * slowest)
        rates = [load.rate for load in loads if isinstance(load, Open)]
        enough = SIMULATED_REQUESTS / (1 if len(self.demands) <= CORE_REPLICAS else 4)
        seconds = max(10 * slowest, enough / max(rates)) if rates else max(4.0, 40 * slowest)
        most = max(self.setting.seconds, min(10 * slowest, enough / max(rates)) if rates else 10 * slowest)
        setting = replace(
            self.setting,
            nodes=nodes,
            seconds=min(seconds, most),
            warm_up_s=min(warm_up, max(2.0, self.setting.warm_up_s)),
        )
        predictions = [outcome.prediction for outcome in simulate(demands, plans, loads, setting)]
        return tuple(
            self._seldom(demand, one, load, nodes)
            if isinstance(load, Open) and _nobody_came(prediction)
            else prediction
            for demand, one, load, prediction in zip(demands, plans, loads, predictions, strict=True)
        )

    def _seldom(self, demand: Demand, plan: ModelPlan, load: Open, nodes: Sequence[Node]) -> Prediction:
        """Of a model that is asked for so seldom that a simulation sees no request: each finds the model idle."""
        seconds = ALONE_REQUESTS * alone_s(demand, plan)
        setting = replace(self.setting, nodes=nodes, seconds=seconds, warm_up_s=seconds / ALONE_REQUESTS)
        found = simulate([demand], [plan], [Closed(1)], setting)[0].prediction
        share = load.rate / found.rate if found.rate else 0.0
        return replace(found, rate=load.rate, busy=tuple(share * busy for busy in found.busy))


def _nobody_came(prediction: Prediction) -> bool:
    return math.isnan(prediction.p99_s) and prediction.kept == 1.0


def _every(stage: StagePlan, parts: int) -> StagePlan:
    """Every `parts`-th replica, at least one."""
    return replace(stage, nodes=stage.nodes[::parts])


def alone_s(demand: Demand, plan: ModelPlan) -> float:
    """Seconds that all stages compute on the longest request where nobody else is there."""
    return sum(
        demand.costs.seconds(
            stage.low, stage.high, demand.rows, demand.lengths[1], device=stage.device, threads=stage.threads
        )
        for stage in plan.stages
    )
