"""Serves a plan in simulated time: a discrete-event simulation of clients, gateways, replicas and machines."""

import math
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise

from cluster.planning.clock import Action, Clock
from cluster.planning.costs import Costs
from cluster.planning.deployment import Demand, ModelPlan, Prediction, StagePlan
from cluster.planning.host import Host, Scheduler, Thread
from cluster.planning.load import Closed, Load, percentile
from cluster.planning.machines import Node
from cluster.planning.road import Road, road_on
from cluster.planning.simulated_worker import MAX_INFLIGHT, MAX_QUEUE_ROWS, Caller, Item, Replica
from worker.batcher import WARM_UP_LENGTHS, Batching, spare_cells
from worker.link import STAGE_LINK


@dataclass(frozen=True, slots=True)
class Setting:
    """Where and how a simulation runs.

    road: what carrying a request costs; None: as on the machines that the models were profiled on.
    gateways: for each gateway process the node it runs on; None: on a machine of its own.
    client: the node that the clients run on, as one process; None: each model's on machines of their own, in as many
      processes as there are gateways.
    seconds: simulated time that is counted, after `warm_up_s`.
    jitter: standard deviation of a batch's seconds, as a share of them (0.02 to 0.3 was measured). Without any, callers
      fall into step with the batches, which are then fuller than real ones.
    scheduler: of every node.
    """

    nodes: Sequence[Node]
    road: Road | None = None
    gateways: tuple[str | None, ...] = (None,)
    client: str | None = None
    seconds: float = 10.0
    warm_up_s: float = 1.0
    jitter: float = 0.2
    scheduler: Scheduler = field(default_factory=Scheduler)
    seed: int = 0


class _Client:
    """The requests of one model, and what became of them."""

    def __init__(
        self,
        clock: Clock,
        demand: Demand,
        gateways: Sequence[tuple[Thread, Caller]],
        threads: Sequence[Thread],
        *,
        setting: Setting,
        road: Road,
        chance: random.Random,
        pads: bool,
    ) -> None:
        self._clock = clock
        self._demand = demand
        self._gateways = gateways
        self._threads = threads
        self._road = road
        self._chance = chance
        self._pads = pads
        self._from = setting.warm_up_s
        self._until = setting.warm_up_s + setting.seconds
        self.ends: list[tuple[float, float]] = []
        """Latency and time of each answer to a request that was sent while it counts."""
        self.sent = self.answered = self.refused = 0
        self.window_sent = self.window_answered = self.window_refused = 0

    def begin(self, load: Load) -> None:
        if isinstance(load, Closed):
            for _ in range(load.callers):
                self._send(again=True)
        else:
            self._come(load.gaps(self._chance).__next__)

    def _come(self, gap: Callable[[], float]) -> None:
        def one() -> None:
            if self._clock.now < self._until:
                self._send(again=False)
                self._clock.at(self._clock.now + gap(), one)

        self._clock.at(self._clock.now + gap(), one)

    def _send(self, *, again: bool, at_once: bool = False) -> None:
        self.sent += 1
        began = self._clock.now
        length = self._chance.randint(*self._demand.lengths)
        costs, rows = self._demand.costs, self._demand.rows
        thread, caller = self._gateways[self.sent % len(self._gateways)]
        nbytes = costs.travels(0, rows, length)
        given = costs.travels(costs.steps, rows, length)
        road, here = self._road, self._threads[self.sent % len(self._threads)]

        def sent() -> None:
            thread.do(road.gateway_in + nbytes * road.gateway_byte, lambda: caller.call(item, wait=False))

        def back(good: bool) -> None:
            thread.do(road.gateway_out + given * road.gateway_byte, arrived(good))

        def arrived(good: bool) -> Action:
            return lambda: here.do(road.client / 2 + given * road.client_byte, lambda: ended(good))

        def ended(good: bool) -> None:
            self._count(began, good)
            if again and self._clock.now < self._until:
                self._send(again=True, at_once=True)

        deadline = began + self._demand.deadline_s
        item = Item(rows, nbytes, (length,), None if self._pads else length, back, deadline)
        here.do(road.client / 2 + nbytes * road.client_byte, sent, at_once=at_once)

    def _count(self, began: float, good: bool) -> None:
        now = self._clock.now
        if good:
            self.answered += 1
            self.window_answered += self._from < now <= self._until
        else:
            self.refused += 1
        if self._from <= began < self._until:
            self.window_sent += 1
            if good:
                self.ends.append((now - began, now))
            else:
                self.window_refused += 1


@dataclass(frozen=True, slots=True)
class Outcome:
    """prediction: what the planner uses. sent, answered, refused: every request, warm-up included."""

    prediction: Prediction
    latencies: tuple[float, ...]
    sent: int
    answered: int
    refused: int


def simulate(
    demands: Sequence[Demand], plans: Sequence[ModelPlan], loads: Sequence[Load], setting: Setting
) -> tuple[Outcome, ...]:
    """Serves every model's load by its plan on the same nodes at the same time."""
    clock = Clock()
    routing = _stream(setting, "routing")
    nodes = {node.name: node for node in setting.nodes}
    road = setting.road or road_for(demands, setting.nodes)
    crowded = _crowded(demands)
    replicas = Counter(name for plan in plans for stage in plan.stages for name in stage.nodes)
    hosts = {
        node.name: Host(
            clock,
            _cores(node, setting, road, replicas[node.name]),
            crowded=crowded.get(node.device, 1.0),
            speed=node.speed,
            scheduler=setting.scheduler,
        )
        for node in setting.nodes
    }
    processes = [(nodes[name] if name else None, _gateway(clock, hosts, name, road)) for name in setting.gateways]
    client_thread = Thread(clock, hosts[setting.client], wake=road.client_wake, niceness=0) if setting.client else None
    clients, pipelines = [], []
    for number, (demand, plan, load) in enumerate(zip(demands, plans, loads, strict=True)):
        pipeline = _pipeline(
            clock, demand, plan, nodes, hosts, road=road, setting=setting, number=number, routing=routing
        )
        gateways = [(thread, Caller(clock, node, pipeline[0], MAX_INFLIGHT, routing)) for node, thread in processes]
        threads = [client_thread] if client_thread else [Thread(clock, None) for _ in processes]
        client = _Client(
            clock,
            demand,
            gateways,
            threads,
            setting=setting,
            road=road,
            chance=_stream(setting, f"requests {number}"),
            pads=demand.costs.profile.paddable,
        )
        client.begin(load)
        clients.append(client)
        pipelines.append(pipeline)
    end = setting.warm_up_s + setting.seconds
    clock.run(end)
    busy = [
        tuple(sum(replica.compute.busy_s for replica in stage) / (len(stage) * end) for stage in pipeline)
        for pipeline in pipelines
    ]
    clock.run(float("inf"))
    return tuple(_outcome(client, setting, shares) for client, shares in zip(clients, busy, strict=True))


def _stream(setting: Setting, what: str) -> random.Random:
    """Of its own, so that every plan is judged on the same requests."""
    return random.Random(f"{setting.seed} {what}")


def road_for(demands: Sequence[Demand], nodes: Sequence[Node]) -> Road:
    """What carrying a request costs on these nodes."""
    return road_on((demand.costs.profile for demand in demands), {node.device for node in nodes})


def _cores(node: Node, setting: Setting, road: Road, replicas: int) -> float:
    """What is left of the node's cores for what workers, gateways and clients do."""
    head = road.head if node.name in setting.gateways[:1] else 0.0
    return max(0.1, node.cpus - head - replicas * road.replica)


def _gateway(clock: Clock, hosts: Mapping[str, Host], name: str | None, road: Road) -> Thread:
    return Thread(clock, hosts[name] if name else None, wake=road.gateway_wake, niceness=0)


def _crowded(demands: Sequence[Demand]) -> Mapping[str, float]:
    """The most that cores of a kind were seen to disturb each other."""
    found: dict[str, float] = {}
    for demand in demands:
        for name, device in demand.costs.profile.devices.items():
            found[name] = max(found.get(name, 1.0), device.crowded)
    return found


def _pipeline(
    clock: Clock,
    demand: Demand,
    plan: ModelPlan,
    nodes: Mapping[str, Node],
    hosts: Mapping[str, Host],
    *,
    road: Road,
    setting: Setting,
    number: int,
    routing: random.Random,
) -> list[list[Replica]]:
    costs = demand.costs
    first = Batching(
        max_rows=plan.max_rows, max_wait_s=plan.max_wait_s, spare_cells=_spare_cells(costs, plan.stages[0])
    )
    stages: list[list[Replica]] = []
    for place, stage in enumerate(plan.stages):
        batching = first if place == 0 else replace(first, max_wait_s=0.0, max_padding=0.0)
        stages.append(
            [
                Replica(
                    clock,
                    nodes[name],
                    hosts[name],
                    stage,
                    batching=batching,
                    seconds=_seconds(
                        costs, stage, nodes[name], setting.jitter, _stream(setting, f"jitter {number} {place} {index}")
                    ),
                    out_bytes=partial(costs.travels, stage.high),
                    road=road,
                    max_queue_rows=math.inf if place else MAX_QUEUE_ROWS,
                )
                for index, name in enumerate(stage.nodes)
            ]
        )
    for before, after in pairwise(stages):
        for replica in before:
            replica.next = Caller(clock, replica.node, after, STAGE_LINK.max_inflight, routing)
            replica.next.room = replica.turn
    return stages


def _spare_cells(costs: Costs, stage: StagePlan) -> float | None:
    """What a worker learns of padding when it warms up."""
    short, long = (
        (length, costs.seconds(stage.low, stage.high, 1, length, device=stage.device, threads=stage.threads))
        for length in WARM_UP_LENGTHS
    )
    return spare_cells(short, long)


def _seconds(
    costs: Costs, stage: StagePlan, node: Node, jitter: float, chance: random.Random
) -> Callable[[int, int], float]:
    speed = node.gpu_speed if stage.gpus else 1.0  # a CPU's speed is its host's

    def seconds(rows: int, length: int) -> float:
        known = costs.seconds(stage.low, stage.high, rows, length, device=stage.device, threads=stage.threads)
        return known / speed * (max(0.0, chance.gauss(1.0, jitter)) if jitter else 1.0)

    return seconds


def _outcome(client: _Client, setting: Setting, busy: tuple[float, ...]) -> Outcome:
    end = setting.warm_up_s + setting.seconds
    ordered = sorted(latency for latency, _ in client.ends)
    # What was sent near the end may take its time; a backlog of more than a fiftieth of the window is one that grows.
    in_time = end + 0.02 * setting.seconds + 2 * percentile(ordered, 0.5) if ordered else end
    sent = client.window_sent
    prediction = Prediction(
        rate=client.window_answered / setting.seconds,
        p50_s=percentile(ordered, 0.50),
        p95_s=percentile(ordered, 0.95),
        p99_s=percentile(ordered, 0.99),
        kept=sum(ended <= in_time for _, ended in client.ends) / sent if sent else 1.0,
        busy=busy,
    )
    return Outcome(
        prediction, tuple(latency for latency, _ in client.ends), client.sent, client.answered, client.refused
    )
