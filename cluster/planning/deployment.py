"""What is asked of the planner, and what it answers. Frozen values; see `cluster/planning/planner.py`."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from cluster.planning.costs import Costs
from cluster.planning.machines import Node


@dataclass(frozen=True, slots=True)
class Demand:
    """What one model must bear.

    rate: requests a second; where throughput is maximised, its share against the other models' rates.
    p99_s: seconds within which 99 of 100 requests must be answered; None: as it comes.
    lengths: shortest and longest request (evenly spread), in cells of the model's other axes.
    variation: of the times between requests, standard deviation over mean: 1 Poisson, more: bursts (Gamma).
    rows: of one request.
    deadline_s: a request that has waited so long in a queue is dropped there, uncomputed, as the real system does.
    """

    model: str
    costs: Costs
    rate: float = 1.0
    p99_s: float | None = None
    lengths: tuple[int, int] = (64, 64)
    variation: float = 1.0
    rows: int = 1
    deadline_s: float = 30.0

    @property
    def length(self) -> int:
        return (self.lengths[0] + self.lengths[1] + 1) // 2


@dataclass(frozen=True, slots=True)
class StagePlan:
    """One stage: steps `low` to `high`, computed on `device` by a replica on each of `nodes`.

    cpus: reserved for one replica; under 1 where replicas share a core. memory: bytes of one replica.
    """

    low: int
    high: int
    device: str
    threads: int
    cpus: float
    gpus: int
    memory: int
    nodes: tuple[str, ...] = ()

    @property
    def replicas(self) -> int:
        return len(self.nodes)


@dataclass(frozen=True, slots=True)
class ModelPlan:
    """max_rows, max_wait_s: the batching. measured: whether every stage was measured as such."""

    model: str
    stages: tuple[StagePlan, ...]
    max_rows: int
    max_wait_s: float = 0.0
    measured: bool = True

    @property
    def points(self) -> tuple[int, ...]:
        return tuple(stage.low for stage in self.stages[1:])

    @property
    def cpus(self) -> float:
        return sum(stage.cpus * stage.replicas for stage in self.stages)

    @property
    def nodes(self) -> frozenset[str]:
        return frozenset(node for stage in self.stages for node in stage.nodes)


@dataclass(frozen=True, slots=True)
class Prediction:
    """Of one model under the simulated load: answers a second, and latencies in seconds.

    kept: share of the requests that were answered, and not so late that the queue must be growing. busy: share of the
    time that a replica of each stage computes.
    """

    rate: float
    p50_s: float
    p95_s: float
    p99_s: float
    kept: float = 1.0
    busy: tuple[float, ...] = ()

    def holds(self, demand: Demand) -> bool:
        """Whether the load is borne, with the latency that was asked for."""
        return self.kept >= 0.99 and (demand.p99_s is None or self.p99_s <= demand.p99_s)


@dataclass(frozen=True, slots=True)
class Plan:
    """models: in the order of the demands. bound: the most that any plan could reach, in the unit of `achieved`.

    achieved: requests a second of all models together. limit: what keeps it from more. runner_up: the next best, told
    in a line; empty where there was none.
    """

    models: tuple[ModelPlan, ...]
    predictions: tuple[Prediction, ...]
    achieved: float
    bound: float
    limit: str
    runner_up: str = ""
    considered: int = 0
    nodes: tuple[Node, ...] = field(default=(), repr=False)

    @property
    def nodes_used(self) -> int:
        return len({name for model in self.models for name in model.nodes})


def summary(plan: ModelPlan) -> str:
    """The plan in a few words: "2 stages x [1, 1] replicas, 1 thread, 16 rows"."""
    counts: Sequence[int] = [stage.replicas for stage in plan.stages]
    threads = sorted({stage.threads for stage in plan.stages})
    devices = sorted({stage.device for stage in plan.stages})
    shown = "/".join(map(str, threads))
    return (
        f"{len(plan.stages)} stage{'s' * (len(plan.stages) > 1)} x {counts} replicas, {shown} "
        f"thread{'s' * (threads != [1])}, {plan.max_rows} rows, {'+'.join(devices)}"
    )
