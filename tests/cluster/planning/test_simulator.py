"""The simulator: nothing is lost in it, and it gives what queueing theory gives where that knows the answer."""

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.planning.costs import Costs
from cluster.planning.deployment import Demand, ModelPlan, StagePlan
from cluster.planning.load import Closed, Load, Open
from cluster.planning.machines import Node
from cluster.planning.road import Road
from cluster.planning.simulator import Outcome, Setting, simulate
from tests.cluster.planning.profiles import chain

FREE = Road().times(0.0)
"""A road that costs nothing."""


def planned(points: tuple[int, ...], replicas: int, rows: int, *, steps: int, nodes: int = 1) -> ModelPlan:
    edges = (0, *points, steps)
    return ModelPlan(
        "m",
        tuple(
            StagePlan(low, high, "cpu", 1, 1.0, 0, 0, tuple(f"n{(place + index) % nodes}" for index in range(replicas)))
            for place, (low, high) in enumerate(pairwise(edges))
        ),
        rows,
    )


def run(
    plan: ModelPlan,
    load: Load,
    *,
    step_ms: list[float],
    cores: int = 64,
    road: Road = FREE,
    jitter: float = 0.0,
    **kind: float,
) -> Outcome:
    demand = Demand("m", Costs(chain(step_ms, **kind)), lengths=(64, 64))  # type: ignore[arg-type]
    nodes = [Node(f"n{place}", cores, 1 << 34, latency_s=0.0) for place in range(3)]
    (outcome,) = simulate([demand], [plan], [load], Setting(nodes, road=road, seconds=20, warm_up_s=1, jitter=jitter))
    return outcome


def test_an_answer_counts_when_it_comes_whenever_its_request_was_sent() -> None:
    slow = run(planned((), 1, 1, steps=1), Closed(4), step_ms=[2000.0])
    assert slow.prediction.rate == pytest.approx(10 / 20), "one each two seconds: three waited when the time began"


def test_a_batch_takes_its_compute_thread_a_turn_beside_the_shard() -> None:
    road = replace(FREE, turn=0.01)
    assert run(planned((), 1, 1, steps=1), Closed(4), step_ms=[40.0], road=road).prediction.rate == pytest.approx(20)
    both = run(planned((1,), 1, 1, steps=2), Closed(4), step_ms=[40.0, 40.0], road=road)
    assert both.prediction.rate == pytest.approx(20, rel=0.01), "each stage has its own"


def test_what_a_batch_holds_is_put_together_in_its_compute_thread() -> None:
    costs = Costs(chain([40.0]))
    road = replace(FREE, turn_byte=0.01 / costs.travels(0, 1, 64))
    assert run(planned((), 1, 1, steps=1), Closed(4), step_ms=[40.0], road=road).prediction.rate == pytest.approx(20)


@settings(max_examples=20, deadline=None)
@given(
    st.sampled_from([(), (1,), (1, 2)]),
    st.integers(1, 3),
    st.sampled_from([1, 4, 16]),
    st.one_of(st.builds(Closed, st.integers(1, 40)), st.builds(Open, st.floats(20, 300), st.floats(0.1, 2))),
    st.integers(1, 3),
)
def test_every_request_is_answered_or_refused(
    points: tuple[int, ...], replicas: int, rows: int, load: Load, nodes: int
) -> None:
    plan = planned(points, replicas, rows, steps=3, nodes=nodes)
    demand = Demand("m", Costs(chain([2.0, 3.0, 1.0])), lengths=(16, 128))
    setting = Setting([Node(f"n{place}", 2, 1 << 34) for place in range(nodes)], seconds=1, warm_up_s=0.2)
    (outcome,) = simulate([demand], [plan], [load], setting)
    assert outcome.sent == outcome.answered + outcome.refused
    assert outcome.sent > 0
    assert all(latency >= 0 for latency in outcome.latencies)


def test_one_caller_sees_the_service_time() -> None:
    outcome = run(planned((), 1, 8, steps=2), Closed(1), step_ms=[4.0, 6.0])
    assert outcome.prediction.p99_s == pytest.approx(10e-3)
    assert outcome.prediction.rate == pytest.approx(100, rel=0.01)


def test_two_stages_of_equal_time_give_twice_the_throughput_of_one() -> None:
    outcome = run(planned((1,), 1, 1, steps=2), Closed(8), step_ms=[5.0, 5.0])
    assert outcome.prediction.rate == pytest.approx(200, rel=0.02)


def test_an_open_queue_waits_as_theory_says() -> None:
    """M/D/1 at 70 %: the mean time in the system is s + rho*s / (2*(1-rho))."""
    outcome = run(planned((), 1, 1, steps=1), Open(70.0), step_ms=[10.0])
    mean = sum(outcome.latencies) / len(outcome.latencies)
    assert mean == pytest.approx(10e-3 * (1 + 0.7 / (2 * 0.3)), rel=0.15)


def test_batches_make_up_for_what_a_run_costs_by_itself() -> None:
    one = run(planned((), 1, 1, steps=1), Closed(16), step_ms=[1.0], per_batch_ms=9.0)
    many = run(planned((), 1, 16, steps=1), Closed(16), step_ms=[1.0], per_batch_ms=9.0)
    assert one.prediction.rate == pytest.approx(100, rel=0.02)
    assert many.prediction.rate > 4 * one.prediction.rate


def test_replicas_on_one_core_are_no_faster_than_one() -> None:
    one = run(planned((), 1, 1, steps=1), Closed(8), step_ms=[5.0], cores=1)
    two = run(planned((), 2, 1, steps=1), Closed(8), step_ms=[5.0], cores=1)
    assert 0.83 * one.prediction.rate < two.prediction.rate < 1.01 * one.prediction.rate  # they take turns


def test_the_road_costs_time() -> None:
    free = run(planned((), 1, 1, steps=1), Closed(1), step_ms=[1.0])
    paid = run(
        planned((), 1, 1, steps=1), Closed(1), step_ms=[1.0], road=replace(FREE, gateway_in=1e-3, worker_out=5e-4)
    )
    assert paid.prediction.p50_s == pytest.approx(free.prediction.p50_s + 1.5e-3, rel=0.01)


def test_bursts_make_the_tail_longer() -> None:
    calm = run(planned((), 1, 1, steps=1), Open(60.0, 1.0), step_ms=[10.0])
    bursty = run(planned((), 1, 1, steps=1), Open(60.0, 4.0), step_ms=[10.0])
    assert bursty.prediction.p99_s > 2 * calm.prediction.p99_s


def test_the_same_seed_gives_the_same_result() -> None:
    first, second = (run(planned((1,), 2, 4, steps=2), Open(120.0), step_ms=[5.0, 5.0]) for _ in range(2))
    assert first == second


def test_batches_of_unequal_time_get_callers_out_of_step() -> None:
    """Two replicas that take equally long answer all callers at once, and get full batches back; real ones do not."""
    plan, load = planned((), 2, 4, steps=1), Closed(16)
    in_step = run(plan, load, step_ms=[10.0], per_batch_ms=20.0).prediction
    real = run(plan, load, step_ms=[10.0], per_batch_ms=20.0, jitter=0.1).prediction
    assert in_step.p50_s == pytest.approx(in_step.p95_s)
    assert real.p95_s > 1.1 * real.p50_s
    assert real.rate < in_step.rate


def test_replicas_take_a_little_of_their_node_all_the_time() -> None:
    alone = run(planned((), 1, 1, steps=1), Closed(1), step_ms=[10.0], cores=1)
    beside = run(planned((), 1, 1, steps=1), Closed(1), step_ms=[10.0], cores=1, road=replace(FREE, replica=0.5))
    assert beside.prediction.rate == pytest.approx(alone.prediction.rate / 2, rel=0.02)


def test_every_plan_is_judged_on_the_same_requests() -> None:
    load = Open(120, 4.0)
    plans = [planned((), replicas, rows, steps=1) for replicas in (1, 2) for rows in (1, 4)]
    sent = {run(plan, load, step_ms=[1.0], jitter=0.1).sent for plan in plans}
    assert len(sent) == 1
