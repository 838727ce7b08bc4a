"""Plans: what they keep to, and why there is none."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.planning.bound import least_core_seconds, most_rounds
from cluster.planning.costs import Costs
from cluster.planning.deployment import Demand, Plan
from cluster.planning.judge import Objective
from cluster.planning.machines import Node
from cluster.planning.planner import NothingFits, plan
from cluster.planning.shapes import Limits
from cluster.planning.simulator import Setting
from tests.cluster.planning.profiles import chain
from worker.errors import InvalidRequest

GIB = 2**30
SIMULATED_S = 1.0
QUICK = Limits(most_stages=3, max_rows=(1, 8), shares=(1.0, 0.5))
MOST, RATE, FEWEST = Objective("max_throughput"), Objective("rate"), Objective("min_nodes")


def node(name: str, cpus: float = 2, gib: float = 4, **more: float) -> Node:
    return Node(name, cpus, int(gib * GIB), **more)  # type: ignore[arg-type]


def planned(demands: list[Demand], nodes: list[Node], objective: Objective, limits: Limits = QUICK) -> Plan:
    return plan(demands, nodes, objective, limits=limits, setting=Setting(nodes, seconds=SIMULATED_S))


def check(found: Plan, demands: list[Demand], nodes: list[Node]) -> None:
    """Cuts cover the programs, no node is given more than it has, and no plan beats its bound."""
    for one, demand in zip(found.models, demands, strict=True):
        edges = [one.stages[0].low, *(stage.high for stage in one.stages)]
        assert edges[0] == 0
        assert edges[-1] == demand.costs.steps
        assert [stage.low for stage in one.stages] == edges[:-1]
        assert all(stage.replicas >= 1 for stage in one.stages)
    for host in nodes:
        here = [stage for one in found.models for stage in one.stages for name in stage.nodes if name == host.name]
        assert sum(stage.cpus for stage in here) <= host.cpus + 1e-6
        assert sum(stage.memory for stage in here) <= host.memory
        assert sum(stage.gpus for stage in here) <= host.gpus
    # A batch that began before the simulated time counts where it ends.
    ending = sum(one.max_rows * one.stages[-1].replicas / SIMULATED_S for one in found.models)
    assert found.achieved <= found.bound * 1.02 + ending


@settings(max_examples=8, deadline=None)
@given(
    st.lists(st.floats(0.5, 20), min_size=2, max_size=6),
    st.lists(st.tuples(st.sampled_from([1, 2, 4]), st.sampled_from([0.5, 1.0, 4.0])), min_size=1, max_size=3),
    st.sampled_from([MOST, Objective("max_throughput", 4)]),
    st.booleans(),
)
def test_a_plan_keeps_to_what_there_is(
    steps: list[float], shapes: list[tuple[int, float]], objective: Objective, any_cut: bool
) -> None:
    nodes = [node(f"n{place}", cpus, gib) for place, (cpus, gib) in enumerate(shapes)]
    demands = [Demand("m", Costs(chain(steps, packaged=[(), (1,)], weight_mib=20)))]
    found = planned(demands, nodes, objective, replace(QUICK, any_cut=any_cut))
    check(found, demands, nodes)


def test_a_rate_is_borne_on_few_cores() -> None:
    demands = [Demand("m", Costs(chain([5.0, 5.0])), rate=150, p99_s=0.1)]
    nodes = [node(f"n{place}") for place in range(4)]
    found = planned(demands, nodes, RATE)
    check(found, demands, nodes)
    assert found.predictions[0].holds(demands[0])
    assert 2 <= sum(one.cpus for one in found.models) <= 4


def test_as_few_nodes_as_bear_the_rate() -> None:
    demands = [Demand("m", Costs(chain([5.0, 5.0])), rate=300, p99_s=0.2)]
    nodes = [node(f"n{place}") for place in range(8)]
    found = planned(demands, nodes, FEWEST)
    check(found, demands, nodes)
    assert found.nodes_used in (2, 3)


def test_a_model_too_large_for_any_node_is_cut() -> None:
    large = Costs(chain([2.0] * 4, packaged=[(), (2,)], weight_mib=400))
    nodes = [node("a", 2, 1.2), node("b", 2, 1.2)]
    demands = [Demand("m", large)]
    found = planned(demands, nodes, MOST)
    check(found, demands, nodes)
    assert len(found.models[0].stages) == 2
    assert found.nodes_used == 2


def test_where_only_an_unpackaged_cut_fits_that_is_said_and_any_cut_finds_it() -> None:
    large = [Demand("m", Costs(chain([2.0] * 4, weight_mib=400)))]
    nodes = [node(f"n{place}", 2, 1.2) for place in range(2)]
    with pytest.raises(NothingFits, match="one into 2 stages would: plan with --any-cut"):
        planned(large, nodes, MOST)
    found = planned(large, nodes, MOST, replace(QUICK, any_cut=True))
    check(found, large, nodes)
    assert not found.models[0].measured


def test_stages_use_the_kinds_of_nodes_that_there_are() -> None:
    costs = Costs(chain([10.0, 10.0], packaged=[(), (1,)], devices=[("cpu", 1.0), ("cuda", 10.0)]))
    nodes = [node("plain", 2), node("gpu", 2, gpus=1, gpu_memory=16 * GIB)]
    demands = [Demand("m", costs)]
    found = planned(demands, nodes, MOST)
    check(found, demands, nodes)
    used = {stage.device for one in found.models for stage in one.stages}
    assert "cuda" in used


def test_models_share_the_nodes_in_the_ratio_of_their_rates() -> None:
    light, heavy = Costs(chain([2.0])), Costs(chain([8.0]))
    demands = [Demand("light", light, rate=2.0), Demand("heavy", heavy, rate=1.0)]
    nodes = [node(f"n{place}", 4) for place in range(3)]
    found = planned(demands, nodes, MOST)
    check(found, demands, nodes)
    first, second = (prediction.rate for prediction in found.predictions)
    assert first == pytest.approx(2 * second, rel=0.25)


def test_more_models_than_cores_share_them() -> None:
    demands = [Demand(f"m{place}", Costs(chain([2.0])), rate=5.0) for place in range(3)]
    nodes = [node("only", 2)]
    found = planned(demands, nodes, RATE)
    check(found, demands, nodes)


@pytest.mark.parametrize(
    ("demand", "nodes", "told"),
    [
        ({"rate": 10_000.0}, [node("a")], "one more has no place: it needs"),
        ({"p99_s": 1e-3}, [node("a")], "a request alone takes"),
        ({}, [node("a", 2, 0.05)], "no node holds any stage"),
        ({}, [node("a", device="tpu")], "profiled on cpu, and the nodes have tpu"),  # type: ignore[arg-type]
    ],
)
def test_why_nothing_fits_is_said(demand: dict[str, float], nodes: list[Node], told: str) -> None:
    base = Demand("m", Costs(chain([5.0, 5.0])), rate=10.0)
    with pytest.raises(NothingFits, match=told):
        planned([replace(base, **demand)], nodes, RATE)  # type: ignore[arg-type]


def test_a_latency_that_only_a_faster_node_keeps_is_planned_there() -> None:
    demand = Demand("m", Costs(chain([120.0])), rate=2.0, p99_s=0.1)
    with pytest.raises(NothingFits, match="a request alone takes"):
        planned([demand], [node("as profiled")], RATE)
    found = planned([demand], [node("three times as fast", speed=3.0)], RATE)
    assert found.models[0].stages[0].nodes == ("three times as fast",)


def test_a_rate_must_be_positive() -> None:
    with pytest.raises(InvalidRequest, match="rate"):
        planned([Demand("m", Costs(chain([5.0])), rate=0.0)], [node("a")], RATE)
    with pytest.raises(InvalidRequest, match="no node"):
        planned([Demand("m", Costs(chain([5.0])))], [], RATE)


def test_a_plan_tells_its_limit_and_the_runner_up() -> None:
    found = planned([Demand("m", Costs(chain([5.0, 5.0], packaged=[(), (1,)])))], [node("a")], MOST)
    assert "m stage" in found.limit
    assert "requests/s" in found.runner_up


def test_the_bound_is_the_capacity_where_nothing_is_lost() -> None:
    demands = [Demand("m", Costs(chain([5.0, 5.0])), rate=1.0)]
    assert least_core_seconds(demands[0].costs, "cpu", 64, (1, 8)) == pytest.approx(10e-3)
    assert most_rounds(demands, [node("a", 2), node("b", 4)], (1, 8)) == pytest.approx(600)


def test_the_bound_of_two_kinds_is_that_of_the_best_division() -> None:
    """One model 10 times faster on the GPU, one only twice: the GPU belongs to the first."""
    fast = Costs(chain([10.0], devices=[("cpu", 1.0), ("cuda", 10.0)]))
    slow = Costs(chain([10.0], devices=[("cpu", 1.0), ("cuda", 2.0)]))
    demands = [Demand("fast", fast, rate=10.0), Demand("slow", slow, rate=1.0)]
    nodes = [node("a", 1, gpus=1, gpu_memory=GIB)]
    # The GPU does `fast` alone at 1000/s = 100 rounds; the core does `slow` at 100/s = 100 rounds.
    assert most_rounds(demands, nodes, (1,)) == pytest.approx(100, rel=0.01)
