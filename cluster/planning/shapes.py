"""The ways to run one model that are worth a try: cuts, devices, threads, batch limits. Pure; nodes come later."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from cluster.planning.costs import Costs
from cluster.planning.cuts import even_cuts, split
from cluster.planning.deployment import Demand, StagePlan
from cluster.planning.machines import Node
from cluster.planning.packing import Need
from cluster.planning.road import Road

MOST_STAGES: Final = 8
MOST_MIXED: Final = 3
"""Stages up to which every order of device kinds is tried; with more, all stages are of one kind."""
MOST_WORKERS: Final = 12
"""Up to so many, the cuts are also sought that are best with unequal replicas: the work grows with their square."""
MAX_ROWS: Final = (1, 2, 4, 8, 16, 32)
SHARES: Final = (1.0, 0.5, 0.25)
"""Of a core, that is reserved for a replica with one thread."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What bounds the search. stages: so many and no other; None: up to `most_stages`.

    any_cut: not only the packaged cuts: the artifact must be packaged again with the one that is chosen.
    """

    most_stages: int = MOST_STAGES
    stages: int | None = None
    max_rows: tuple[int, ...] = MAX_ROWS
    threads: tuple[int, ...] | None = None
    shares: tuple[float, ...] = SHARES
    any_cut: bool = False


@dataclass(frozen=True, slots=True)
class Shape:
    """Stages without nodes, and the batching. row_seconds: of each stage for a row of a full batch, overheads included.

    core_seconds: of all stages for a row. alone_s: a request's way through all stages when nobody else is there.
    """

    stages: tuple[StagePlan, ...]
    max_rows: int
    row_seconds: tuple[float, ...]
    core_seconds: float
    alone_s: float
    measured: bool

    def capacity(self, place: int, speed: float = 1.0) -> float:
        """Requests' rows a second that one replica of a stage computes, where its share of a core is all it gets."""
        stage = self.stages[place]
        share = min(1.0, stage.cpus / stage.threads) if not stage.gpus else 1.0
        return share * speed / self.row_seconds[place]


def need(stage: StagePlan) -> Need:
    """What one replica takes of a node. One that computes on a GPU holds its process in the node's memory, too."""
    if stage.gpus:
        return Need(stage.device, stage.cpus, stage.memory, stage.gpus, stage.memory)
    return Need(stage.device, stage.cpus, stage.memory)


def shapes(demand: Demand, nodes: Sequence[Node], limits: Limits, road: Road) -> Iterator[Shape]:
    """Every shape of which some node can hold a replica of each stage; for each number of stages the best cut."""
    kinds = _kinds(demand.costs, nodes)
    for devices in _mixes(sorted(kinds), limits):
        for rows in limits.max_rows:
            for threads in _thread_counts(demand.costs, devices, kinds, limits):
                way = _Way(demand, tuple(kinds[device] for device in devices), rows, threads)
                shares = limits.shares if threads == 1 else (1.0,)
                for edges in dict.fromkeys((_cut(way, limits), _uneven_cut(way, nodes, limits))):
                    if edges is not None:
                        yield from (_shape(way, edges, share, road) for share in shares)


@dataclass(frozen=True, slots=True)
class _Kind:
    """A device, and the most that a node with it has. speed: of the fastest."""

    device: str
    gpu: bool
    cpus: float
    memory: int
    speed: float


@dataclass(frozen=True, slots=True)
class _Way:
    """A device for each stage, the rows of a full batch, and the threads of a replica on CPUs."""

    demand: Demand
    kinds: tuple[_Kind, ...]
    rows: int
    threads: int

    def seconds(self, place: int, low: int, high: int, rows: int, length: int) -> float:
        kind = self.kinds[place]
        threads = 1 if kind.gpu else self.threads
        return self.demand.costs.seconds(low, high, rows, length, device=kind.device, threads=threads)

    def memory(self, place: int, low: int, high: int) -> int:
        longest = self.demand.lengths[1]
        return self.demand.costs.memory(low, high, self.rows, longest, device=self.kinds[place].device)


def _kinds(costs: Costs, nodes: Sequence[Node]) -> dict[str, _Kind]:
    """Devices that some node has and the model was profiled on."""
    found: dict[str, _Kind] = {}
    for node in nodes:
        offers = [_Kind(node.device, False, node.cpus, node.memory, node.speed)]
        if node.gpus:
            offers.append(_Kind(node.gpu_device, True, node.cpus, min(node.memory, node.gpu_memory), node.gpu_speed))
        for kind in offers:
            if kind.device in costs.devices:
                best = found.get(kind.device, kind)
                found[kind.device] = _Kind(
                    kind.device,
                    kind.gpu,
                    max(best.cpus, kind.cpus),
                    max(best.memory, kind.memory),
                    max(best.speed, kind.speed),
                )
    return found


def _mixes(kinds: Sequence[str], limits: Limits) -> Iterator[tuple[str, ...]]:
    counts = [limits.stages] if limits.stages is not None else range(1, limits.most_stages + 1)
    for count in counts:
        if count <= MOST_MIXED:
            yield from itertools.product(kinds, repeat=count)
        else:
            yield from ((kind,) * count for kind in kinds)


def _thread_counts(costs: Costs, devices: Sequence[str], kinds: dict[str, _Kind], limits: Limits) -> list[int]:
    if all(kinds[device].gpu for device in devices):
        return [1]
    known = {threads for device in devices if not kinds[device].gpu for threads in costs.thread_counts(device)}
    wanted = known & set(limits.threads) if limits.threads is not None else known
    most = max(kinds[device].cpus for device in devices if not kinds[device].gpu)
    return sorted(threads for threads in wanted if threads <= most)


def _cut(way: _Way, limits: Limits) -> tuple[int, ...] | None:
    """The edges of the best cut into one stage a device; None: no stage of some device would fit any node."""
    costs, count = way.demand.costs, len(way.kinds)
    edges: Sequence[int] = costs.edges
    if not limits.any_cut:
        packaged = next((points for points in costs.profile.packaged if len(points) == count - 1), None)
        if packaged is None:
            return None
        edges = (0, *packaged, costs.steps)

    def cost(place: int, low: int, high: int) -> float:
        kind = way.kinds[place]
        if way.memory(place, low, high) > kind.memory:
            return float("inf")
        return way.seconds(place, low, high, way.rows, way.demand.length) / kind.speed

    best = even_cuts(edges, count, cost)
    return None if best is None else (0, *best.points, costs.steps)


def _uneven_cut(way: _Way, nodes: Sequence[Node], limits: Limits) -> tuple[int, ...] | None:
    """Where any cut may be made and there are few cores: the cut that is best when stages get unequal replicas."""
    workers = int(sum(node.cpus for node in nodes if node.device == way.kinds[0].device) // way.threads)
    if not limits.any_cut or len(set(way.kinds)) > 1 or way.kinds[0].gpu or not 2 <= workers <= MOST_WORKERS:
        return None

    def cost(low: int, high: int) -> float:
        if way.memory(0, low, high) > way.kinds[0].memory:
            return float("inf")
        return way.seconds(0, low, high, way.rows, way.demand.length)

    best = split(way.demand.costs.edges, workers, len(way.kinds), cost)
    if best is None or len(best.workers) != len(way.kinds):
        return None
    return (0, *best.points, way.demand.costs.steps)


def _shape(way: _Way, edges: Sequence[int], share: float, road: Road) -> Shape:
    demand = way.demand
    stages, seconds, alone = [], [], 0.0
    last = len(way.kinds) - 1
    full = max(way.rows, demand.rows)
    for place, (low, high) in enumerate(itertools.pairwise(edges)):
        kind = way.kinds[place]
        stages.append(
            StagePlan(
                low=low,
                high=high,
                device=kind.device,
                threads=1 if kind.gpu else way.threads,
                cpus=1.0 if kind.gpu else way.threads * share,
                gpus=int(kind.gpu),
                memory=way.memory(place, low, high),
            )
        )
        per_batch = road.batch + road.turn + (road.hop if place < last else 0.0)
        per_row = (road.worker_in + road.worker_out) / demand.rows if place == 0 else 0.0
        seconds.append((way.seconds(place, low, high, full, demand.length) + per_batch) / full + per_row)
        least_s = way.seconds(place, low, high, demand.rows, demand.lengths[1]) / kind.speed
        alone += least_s + per_batch + road.worker_wake
    return Shape(
        tuple(stages),
        way.rows,
        tuple(seconds),
        sum(stage.threads * value for stage, value in zip(stages, seconds, strict=True)),
        alone,
        all(demand.costs.is_measured(stage.low, stage.high, stage.device) for stage in stages),
    )
