from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cluster.autoscaler import GAP_S, Demand, Scaling, ScalingPolicy, StageLoad, needed

POLICY = ScalingPolicy((1, 1), (10, 10), target_utilisation=0.5, up_delay_s=2.0, down_delay_s=10.0)


def demand(rows_per_s: float = 0.0, *, queued: int = 0, inflight: int = 0, ready: int = 1, **more: int) -> Demand:
    """Two stages, 10 ms and 20 ms a row."""
    stages = tuple(
        StageLoad(ready, queued if not index else 0, cost, min(ready, rows_per_s * cost))
        for index, cost in enumerate((0.01, 0.02))
    )
    return Demand(stages, rows_per_s, inflight, missed=more.get("missed", 0), unplaced_rows=more.get("unplaced", 0))


def run(
    looks: list[tuple[float, Demand]], current: tuple[int, ...] = (1, 1), policy: ScalingPolicy = POLICY
) -> list[tuple[int, ...]]:
    scaling, wanted = Scaling(), []
    for now, seen in looks:
        scaling, current, _ = scaling.after(seen, current, policy, now)
        wanted.append(current)
    return wanted


def test_each_stage_gets_what_its_own_cost_needs() -> None:
    assert needed(demand(100), POLICY).replicas == (2, 4)


def test_a_burst_is_answered_in_one_step_once_it_has_lasted() -> None:
    looks = [(float(now), demand(400 if now >= 3 else 10)) for now in range(8)]
    assert run(looks) == [(1, 1)] * 5 + [(8, 10)] * 3


def test_a_spike_shorter_than_the_delay_changes_nothing() -> None:
    looks = [(now / 2, demand(400 if 4 <= now < 7 else 10)) for now in range(20)]
    assert set(run(looks)) == {(1, 1)}


def test_scaling_down_waits_for_its_own_delay_and_keeps_what_was_needed_within_it() -> None:
    looks = [(float(now), demand({0: 400, 4: 100}.get(now, 10))) for now in range(18)]
    wanted = run(looks, (8, 10))
    assert wanted[:11] == [(8, 10)] * 11
    assert wanted[11:15] == [(2, 4)] * 4, "4 s after the start a hundred rows a second were needed"
    assert wanted[15:] == [(1, 1)] * 3


def test_how_often_it_is_asked_does_not_matter() -> None:
    often = run([(now / 10, demand(400)) for now in range(31)])
    rarely = run([(float(now), demand(400)) for now in range(4)])
    assert often[-1] == rarely[-1]
    assert [often[10 * now] for now in range(4)] == rarely


def test_what_waits_is_cleared_within_the_time_given_for_it() -> None:
    assert needed(demand(0, queued=400, inflight=400), POLICY).replicas == (2, 4)


def test_what_waits_keeps_the_replicas_that_come_for_it_and_asks_for_no_more() -> None:
    waits = demand(50, queued=4000, inflight=400)
    assert needed(waits, POLICY, (3, 4)).replicas == (3, 4)
    assert needed(waits, POLICY, (3, 1)).replicas == (3, 2), "what is asked for all the time needs more than that"
    assert needed(waits, POLICY, (1, 1)).replicas == (21, 42), "all are there, and it waits"
    assert needed(demand(50, queued=1, inflight=400), POLICY, (8, 8)).replicas == (2, 3), "next to nothing waits"


def test_replicas_that_load_for_longer_than_the_delay_are_kept_while_what_they_are_for_waits() -> None:
    looks = [(float(now), demand(50, queued=200 + 10 * now, inflight=400)) for now in range(40)]
    assert run(looks)[:2] == [(1, 1)] * 2
    assert set(run(looks)[2:]) == {(3, 5)}, "asked for once, though more and more waits"
    gone = [(40.0 + now, demand(50, inflight=1)) for now in range(12)]
    assert run([*looks, *gone])[-3:] == [(3, 5), (1, 2), (1, 2)], "nothing waits any more"


def test_a_stage_asks_for_no_more_while_replicas_come_to_the_stage_before_it() -> None:
    first, second = StageLoad(1, 4000, 0.01), StageLoad(4, 0, 0.02)
    assert needed(Demand((first, second), inflight=9), POLICY, (3, 4)).replicas == (3, 4)


def test_what_waits_at_a_later_stage_is_answered_while_an_earlier_one_lacks_replicas() -> None:
    first, second = StageLoad(1, 4000, 0.01), StageLoad(4, 400, 0.02)
    assert needed(Demand((first, second), inflight=9), POLICY, (3, 3)).replicas == (3, 4), "by its own queue alone"
    more = replace(second, queued_rows=800)
    assert needed(Demand((first, more), inflight=9), POLICY, (3, 4)).replicas == (3, 8)
    assert needed(Demand((first, more), inflight=9), POLICY, (3, 6)).replicas == (3, 6), "they are on their way"


def test_what_is_asked_for_without_room_stays_asked_for_while_others_come() -> None:
    scaling, asked = Scaling(), []
    for now in range(40):
        granted = (1, 1) if now < 3 else (2, 2)
        scaling, wanted, _ = scaling.after(demand(0, queued=800 + now, inflight=9), granted, POLICY, float(now))
        asked.append(wanted)
    assert set(asked) == {(4, 8)}


def test_deadlines_that_would_be_missed_are_not_made_to_wait_for_the_delay() -> None:
    slow = ScalingPolicy((1, 1), (10, 10), up_delay_s=1000, deadline_s=1.0)
    assert run([(0.0, demand(10, queued=200))], policy=slow) == [(5, 9)]
    assert run([(0.0, demand(10, queued=5))], policy=slow) == [(1, 1)]


def test_missed_deadlines_add_a_replica_where_most_is_computed() -> None:
    assert needed(demand(20, missed=3), POLICY).replicas == (1, 2)


def test_a_deadline_that_no_replica_could_keep_adds_none() -> None:
    assert needed(demand(2, missed=3), POLICY).replicas == (1, 1), "nobody waits for a replica that computes 4 %"
    few = replace(demand(20, missed=3), ended=400)
    assert needed(few, POLICY).replicas == (1, 1), "one client of many asks for what cannot be"


def test_deadlines_that_are_missed_for_ever_do_not_end_at_the_maximum() -> None:
    counts: tuple[int, ...] = (1, 1)
    scaling, most = Scaling(), 0
    for now in range(100):
        seen = demand(20, missed=3)
        stages = tuple(replace(stage, ready=count) for stage, count in zip(seen.stages, counts, strict=True))
        scaling, counts, _ = scaling.after(replace(seen, stages=stages), counts, POLICY, float(now))
        most = max(most, *counts)
    assert most == 2, "twice what the load needs"


def test_the_bounds_hold_whatever_is_needed() -> None:
    assert run([(0.0, demand(10_000)), (2.0, demand(10_000))])[-1] == (10, 10)
    assert run([(0.0, demand())], (0, 20)) == [(1, 10)], "also for what was wanted before"


ZERO = ScalingPolicy((0, 0), (10, 10), up_delay_s=2.0, down_delay_s=10.0)


def test_nothing_is_kept_when_nobody_asks_and_the_first_request_brings_it_back_at_once() -> None:
    looks = [(float(now), demand()) for now in range(11)]
    assert run(looks, policy=ZERO)[-2:] == [(1, 1), (0, 0)]
    asleep = Demand((StageLoad(), StageLoad()), inflight=1, unplaced_rows=1)
    assert run([(0.0, asleep)], (0, 0), ZERO) == [(1, 1)]


def test_one_request_in_flight_keeps_every_stage_alive() -> None:
    looks = [(float(now), demand(inflight=1)) for now in range(30)]
    assert set(run(looks, policy=ZERO)) == {(1, 1)}


@pytest.mark.parametrize("jump", [-1e9, -3.0, GAP_S + 1, 1e9])
def test_a_clock_that_jumps_starts_the_delays_anew(jump: float) -> None:
    before = [(float(now), demand()) for now in range(10)]
    after = [(10 + jump + now, demand()) for now in range(10)]
    assert set(run(before + after, (5, 5))) == {(5, 5)}
    assert run([*before, *after, (20 + jump, demand())], (5, 5))[-1] == (1, 1)


def test_no_look_grows_the_memory_without_bound() -> None:
    scaling = Scaling()
    for now in range(1000):
        scaling, _, _ = scaling.after(demand(10), (1, 1), POLICY, float(now))
    assert len(scaling.needs) <= 12


loads = st.builds(StageLoad, st.integers(0, 5), st.integers(0, 1000), st.floats(0, 1), st.floats(0, 5))
demands = st.builds(
    Demand, st.tuples(loads, loads), st.floats(0, 1e4), st.integers(0, 100), st.integers(0, 100), st.integers(0, 10)
)


@given(
    st.lists(st.tuples(st.floats(-100, 100), demands), max_size=30), st.tuples(st.integers(0, 12), st.integers(0, 12))
)
def test_any_story_stays_within_the_bounds_and_ends_at_the_minimum_when_nobody_asks(
    story: list[tuple[float, Demand]], current: tuple[int, int]
) -> None:
    now = 0.0
    scaling, counts = Scaling(), tuple(current)
    for step, seen in story:
        now += step
        scaling, counts, why = scaling.after(seen, counts, POLICY, now)
        assert why
        assert all(1 <= count <= 10 for count in counts)
    for _ in range(12):
        now += 1
        scaling, counts, _ = scaling.after(Demand((StageLoad(), StageLoad())), counts, POLICY, now)
    assert counts == (1, 1)


@given(
    st.floats(0, 100),
    st.integers(0, 2000),
    st.lists(st.integers(0, 500), min_size=2, max_size=60),
    st.floats(0.0, 3.0),
    st.floats(0.5, 30.0),
)
def test_a_backlog_that_only_grows_gets_one_answer_until_that_is_there(
    rows_per_s: float, queued: int, more: list[int], up_delay_s: float, down_delay_s: float
) -> None:
    policy = ScalingPolicy((1, 1), (10_000, 10_000), up_delay_s=up_delay_s, down_delay_s=down_delay_s)
    scaling, now = Scaling(), 0.0
    counts: tuple[int, ...] = (1, 1)
    answers: list[tuple[int, ...]] = []
    for rows in more:
        queued += rows
        scaling, counts, _ = scaling.after(demand(rows_per_s, queued=queued, inflight=1), counts, policy, now)
        answers.append(counts)
        now += 0.5
    assume(counts != (1, 1))
    of_both = [answer for answer in answers if min(answer) > 1]
    assert len(set(of_both)) <= 1
    assert all(after >= before for one, other in pairwise(answers) for before, after in zip(one, other, strict=True))
