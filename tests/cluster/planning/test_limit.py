"""What limits a plan: each kind of it is told where it is what limits, and is in the simulation, too."""

from dataclasses import replace

import pytest

from cluster.planning.costs import Costs
from cluster.planning.deployment import Demand, ModelPlan, Plan, Prediction, StagePlan
from cluster.planning.judge import Judge, Objective, Tried, alone_s
from cluster.planning.limit import latency_growth, limit
from cluster.planning.load import Open
from cluster.planning.machines import Node
from cluster.planning.planner import plan
from cluster.planning.shapes import Limits
from cluster.planning.simulator import Setting, simulate
from tests.cluster.planning.profiles import chain

GIB = 2**30
QUICK = Limits(most_stages=2, max_rows=(1, 8), shares=(1.0,))
MOST, RATE = Objective("max_throughput"), Objective("rate")


def node(name: str, cpus: float = 2, gib: float = 4, **more: float) -> Node:
    return Node(name, cpus, int(gib * GIB), **more)  # type: ignore[arg-type]


def planned(
    demands: list[Demand], nodes: list[Node], objective: Objective, gateways: tuple[str | None, ...] = (None,)
) -> Plan:
    return plan(demands, nodes, objective, limits=QUICK, setting=Setting(nodes, seconds=1.0, gateways=gateways))


def ten_ms(**more: float | None) -> Demand:
    return replace(Demand("m", Costs(chain([5.0, 5.0], per_batch_ms=10.0))), **more)  # type: ignore[arg-type]


def test_a_latency_that_stops_a_higher_rate_is_told_with_what_would_be_possible() -> None:
    nodes = [node("a"), node("b")]
    free, bound = planned([ten_ms()], nodes, MOST), planned([ten_ms(p99_s=0.05)], nodes, MOST)
    assert bound.achieved < 0.8 * free.achieved
    assert bound.limit.startswith("the latency asked for (--p99): 99 of 100 answers of m within 50 ms")
    assert f"without it {free.achieved:.1f} requests/s would be possible, not {bound.achieved:.1f}" in bound.limit


def test_a_latency_that_stops_nothing_is_not_told() -> None:
    found = planned([ten_ms(p99_s=5.0)], [node("a")], MOST)
    assert found.limit.startswith("m stage 0 computes")


@pytest.mark.parametrize(("p99_s", "told"), [(0.04, "m stage 0 computes"), (0.06, "the latency asked for")])
def test_a_latency_that_another_plan_keeps_with_more_is_not_what_limits(p99_s: float, told: str) -> None:
    nodes, demand = [node("a")], ten_ms(p99_s=0.05)
    plans = (ModelPlan("m", (StagePlan(0, 2, "cpu", 1, 1.0, 0, GIB, ("a",)),), 1),)
    kept, other = Prediction(20.0, 0.02, 0.03, 0.04, busy=(0.9,)), Prediction(30.0, 0.02, 0.03, p99_s, busy=(0.9,))
    best = Tried(plans, (kept,), True, (-21.0,), full=(kept,))
    tried = [best, Tried(plans, (other,), True, (-20.0,), full=(other,))]
    assert limit(Judge([demand], nodes, MOST, Setting(nodes)), best, tried).startswith(told)


@pytest.mark.parametrize(
    ("host", "lacks"),
    [
        (node("a"), "no node has room for one more replica of it: it needs 1 CPUs"),
        (node("a", 8, 0.3), "no node has room for one more replica of it: it needs 0.10 GiB of memory"),
    ],
)
def test_where_nothing_more_fits_what_it_lacks_is_told(host: Node, lacks: str) -> None:
    found = planned([ten_ms()], [host], MOST)
    assert found.limit.startswith("m stage 0 computes 9")
    assert lacks in found.limit


def test_a_gateway_whose_road_is_too_narrow_is_told_and_a_second_one_gives_more() -> None:
    demands, nodes = [Demand("m", Costs(chain([0.02])))], [node("a", 16)]
    one, two = (planned(demands, nodes, MOST, (None,) * count) for count in (1, 2))
    assert one.limit.startswith("the gateway: 1 gateway process would be busy 9")
    assert two.achieved > 1.3 * one.achieved


def test_a_network_that_is_too_slow_is_told_with_the_hop_that_takes_most_of_it() -> None:
    costs = Costs(chain([2.0] * 4, packaged=[(), (2,)], weight_mib=400, row_bytes=20_000))
    nodes = [node(name, 2, 1.2, network=1e6) for name in "ab"]
    most, some = planned([Demand("m", costs)], nodes, MOST, ("a",)), planned([Demand("m", costs, 20)], nodes, RATE)
    assert most.limit.startswith("the network of ")
    assert "most of that from m's stage 0 to stage 1" in most.limit
    assert some.limit.startswith("the network of ")
    fast = [replace(one, network=1e9) for one in nodes]
    assert planned([Demand("m", costs)], fast, MOST, ("a",)).limit.startswith("m stage")


@pytest.mark.parametrize("p99_s", [None, 0.05])
def test_a_model_that_is_asked_for_seldom_has_the_latency_of_requests_alone_and_a_limit_of_its_own(
    p99_s: float | None,
) -> None:
    found = planned([ten_ms(rate=0.001, p99_s=p99_s)], [node("a")], RATE)
    (prediction,) = found.predictions
    assert prediction.rate == 0.001
    assert 0.01 <= prediction.p50_s <= prediction.p99_s <= 0.05
    assert 0 < prediction.busy[0] < 1e-4
    assert "m stage 0 computes 0 % of the time" in found.limit
    seldom = Demand("n", Costs(chain([5.0])), 0.001, p99_s)
    assert planned([ten_ms(rate=50.0), seldom], [node("a", 4)], RATE).predictions[1].rate == 0.001


def test_what_nodes_give_at_most_of_a_model_that_computes_for_longer_than_a_simulation_is_known() -> None:
    found = planned([Demand("m", Costs(chain([4000.0])))], [node("a")], MOST)
    assert found.achieved == pytest.approx(found.bound, rel=0.25)
    assert found.predictions[0].p99_s > 4.0
    assert found.limit.startswith("m stage 0 computes 9")


def test_callers_that_are_too_few_are_told() -> None:
    assert planned([ten_ms()], [node("a")], Objective("max_throughput", 1)).limit.startswith("the callers")


def test_of_several_models_the_one_that_fares_worst_tells_the_limit() -> None:
    demands = [Demand("light", Costs(chain([1.0])), 1.0), Demand("heavy", Costs(chain([40.0])), 1.0)]
    found = planned(demands, [node("a", 4)], MOST)
    assert found.limit.startswith("heavy stage 0 computes")


def test_where_the_busiest_has_room_what_it_grows_with_is_told() -> None:
    demands = [Demand("light", Costs(chain([40.0]))), Demand("heavy", Costs(chain([30.0])))]
    memory = {"light": GIB // 10, "heavy": GIB}
    plans = tuple(
        ModelPlan(one.model, (StagePlan(0, 1, "cpu", 1, 1.0, 0, memory[one.model], ("a",)),), 1) for one in demands
    )
    predictions = tuple(Prediction(20.0, 0.1, 0.1, 0.1, busy=(busy,)) for busy in (0.95, 0.7))
    nodes = [node("a", 16, 1.5)]
    best = Tried(plans, predictions, True, (0.0,))
    told = limit(Judge(demands, nodes, MOST, Setting(nodes)), best, [best])
    assert told == (
        "light stage 0 computes 95 % of the time; a has room for one more, but one more of heavy stage 0, with which "
        "it grows, has no place: it needs 1.00 GiB of memory, the most that is free on a node is 0.40 GiB"
    )


@pytest.mark.parametrize("asked_s", [0.03, 0.04, 1.0])
def test_of_a_plan_for_a_rate_what_gives_way_first_is_told(asked_s: float) -> None:
    """Told, and so in the simulation of one and a half times the growth that the latency is estimated to bear."""
    demand = Demand("m", Costs(chain([5.0, 5.0])), rate=60.0, p99_s=asked_s)
    nodes = [node("a")]
    found = planned([demand], nodes, RATE)
    (busy,) = found.predictions[0].busy
    growth = latency_growth(busy, found.predictions[0].p99_s, asked_s, alone_s(demand, found.models[0]))
    if asked_s == 1.0:
        assert found.limit.startswith("m stage 0 computes")
        return
    assert found.limit.startswith("the latency asked for (--p99): m gives a p99 of")
    more = demand.rate * 1.5 * growth
    (outcome,) = simulate([demand], found.models, [Open(more)], Setting(nodes, seconds=20.0))
    assert outcome.prediction.p99_s > asked_s
    assert outcome.prediction.kept >= 0.99, "only the latency is not kept"


@pytest.mark.parametrize(
    ("busy", "p99_s", "asked_s", "growth"),
    [(0.5, 0.03, 0.03, 1.0), (0.5, 0.02, 0.1, 1.8), (0.0, 0.02, 0.1, float("inf")), (0.5, 0.01, 0.1, float("inf"))],
)
def test_waits_grow_as_in_any_queue(busy: float, p99_s: float, asked_s: float, growth: float) -> None:
    assert latency_growth(busy, p99_s, asked_s, alone=0.01) == pytest.approx(growth)
