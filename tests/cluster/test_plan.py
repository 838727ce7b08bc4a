import asyncio
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.plan import Action, Drain, Leave, Publish, Start, Stop, Tell, plan, routes
from cluster.simulated_fleet import SimulatedFleet
from cluster.world import Phase, Replica, Route, Stage, World

FIRST, SECOND = Stage("minilm", 1, 0), Stage("minilm", 1, 1)


def ready(name: str, stage: Stage = FIRST, **values: object) -> Replica:
    return Replica(name, stage, Phase.READY, f"host:{name}", **values)  # type: ignore[arg-type]


def told(name: str, *following: str) -> Replica:
    table = {replica: f"host:{replica}" for replica in following}
    return ready(name, told=table, asked=table)


def adopted(name: str, stage: Stage = FIRST) -> Replica:
    return ready(name, stage, told=None, asked=None)


def published(*names: str, reason: str = "") -> tuple[Route, ...]:
    return (Route("minilm", 1, {name: f"host:{name}" for name in names}, reason),)


def kinds(actions: list[Action]) -> list[str]:
    return [type(action).__name__ for action in actions]


def test_what_is_missing_is_started() -> None:
    actions = plan(World({FIRST: 2, SECOND: 1}, published=published(reason="stage 0 has no ready replica")))
    assert actions == [
        Start(FIRST, "minilm/1 stage 0 has 0 ready and 0 coming of 2"),
        Start(FIRST, "minilm/1 stage 0 has 0 ready and 0 coming of 2"),
        Start(SECOND, "minilm/1 stage 1 has 0 ready and 0 coming of 1"),
    ]


def test_what_is_on_its_way_is_not_started_again() -> None:
    coming = (Replica("a", FIRST, Phase.PENDING), Replica("b", FIRST, Phase.STARTING))
    assert plan(World({FIRST: 2}, coming, published=published(reason="stage 0 has no ready replica"))) == []


def test_nothing_is_done_when_all_is_as_wanted() -> None:
    world = World(
        {FIRST: 2, SECOND: 1}, (told("a", "c"), told("b", "c"), ready("c", SECOND)), published=published("a", "b")
    )
    assert plan(world) == []


def test_a_new_replica_is_told_its_next_stage_before_gateways_hear_of_it() -> None:
    world = World({FIRST: 2, SECOND: 1}, (told("a", "c"), ready("b"), ready("c", SECOND)), published=published("a"))
    assert plan(world) == [Tell("b", {"c": "host:c"}, "minilm/1 stage 1 has 1 ready")]
    world = replace(world, replicas=(told("a", "c"), told("b", "c"), ready("c", SECOND)))
    assert plan(world) == [Publish(published("a", "b"), "minilm/1 takes requests at ['a', 'b']")]


def test_a_worker_that_did_not_confirm_is_not_told_again_until_it_failed() -> None:
    asked = ready("a", asked={"c": "host:c"})
    world = World({FIRST: 1, SECOND: 1}, (asked, ready("c", SECOND)), published=())
    assert "Tell" not in kinds(plan(world))
    assert "Tell" in kinds(plan(replace(world, replicas=(replace(asked, asked=None), ready("c", SECOND)))))


def test_a_pipeline_is_joined_up_from_its_end() -> None:
    third = Stage("minilm", 1, 2)
    world = World({FIRST: 1, SECOND: 1, third: 1}, (ready("a"), ready("b", SECOND), ready("c", third)))
    assert [action for action in plan(world) if isinstance(action, Tell)] == [
        Tell("b", {"c": "host:c"}, "minilm/1 stage 2 has 1 ready")
    ]
    joined = ready("b", SECOND, told={"c": "host:c"}, asked={"c": "host:c"})
    world = replace(world, replicas=(ready("a"), joined, ready("c", third)))
    assert [action for action in plan(world) if isinstance(action, Tell)] == [
        Tell("a", {"b": "host:b"}, "minilm/1 stage 1 has 1 ready")
    ]


def test_a_dead_replica_is_buried_replaced_and_left_out_of_the_tables_at_once() -> None:
    dead = Replica("b", FIRST, Phase.DEAD, "host:b", why="its process died")
    world = World({FIRST: 2, SECOND: 1}, (told("a", "c"), dead, ready("c", SECOND)), published=published("a", "b"))
    assert plan(world) == [
        Stop("b", "it is dead: its process died"),
        Start(FIRST, "minilm/1 stage 0 has 1 ready and 0 coming of 2"),
        Publish(published("a"), "minilm/1 takes requests at ['a']"),
    ]


def test_a_dead_replica_of_a_later_stage_is_taken_from_its_callers() -> None:
    dead = Replica("d", SECOND, Phase.DEAD, why="its process died")
    world = World({FIRST: 1, SECOND: 2}, (told("a", "c", "d"), ready("c", SECOND), dead), published=published("a"))
    assert Tell("a", {"c": "host:c"}, "minilm/1 stage 1 has 1 ready") in plan(world)


def test_a_stage_that_is_held_back_starts_nothing_and_says_why_it_is_not_ready() -> None:
    why = "its replicas die one after the other"
    world = World({FIRST: 1}, held_back={FIRST: why}, notes={FIRST: why})
    assert plan(world) == [
        Publish(
            published(reason=f"stage 0 has no ready replica: {why}"),
            f"minilm/1 is not ready: stage 0 has no ready replica: {why}",
        )
    ]


def test_why_a_stage_waits_is_told_to_gateways() -> None:
    world = World({FIRST: 1}, (Replica("a", FIRST, Phase.PENDING),), notes={FIRST: "no room"})
    assert routes(world) == published(reason="stage 0 has no ready replica: no room")


def test_scale_down_goes_out_of_the_table_then_drains_then_stops() -> None:
    world = World({FIRST: 1}, (ready("a", queued_rows=5), ready("b")), published=published("a", "b"))
    assert plan(world) == [Leave("b", "minilm/1 stage 0 has 2 ready and 0 coming of 1")]
    leaving = ready("b", leaving=True)
    world = replace(world, replicas=(ready("a"), leaving))
    assert kinds(plan(world)) == ["Publish"]
    world = replace(world, published=published("a"))
    assert plan(world) == [Drain("b", "it is in no caller's table any more")]
    world = replace(world, replicas=(ready("a"), replace(leaving, phase=Phase.DRAINING)))
    assert plan(world) == []
    world = replace(world, replicas=(ready("a"), replace(leaving, phase=Phase.DRAINED)))
    assert plan(world) == [Stop("b", "it owes nothing any more")]


def test_of_those_with_as_much_to_do_the_one_that_sits_worst_goes() -> None:
    world = World({FIRST: 1}, (ready("a", seat=(-1, 1)), ready("b", seat=(-1, 2))), published=published("a", "b"))
    assert [action.replica for action in plan(world) if isinstance(action, Leave)] == ["a"]


def test_a_later_stage_is_drained_only_when_every_caller_confirmed_that_it_is_gone() -> None:
    leaving = ready("d", SECOND, leaving=True)
    stale = ready("a", told={"c": "host:c", "d": "host:d"}, asked={"c": "host:c"})
    world = World({FIRST: 2, SECOND: 1}, (stale, told("b", "c"), ready("c", SECOND), leaving))
    world = replace(world, published=routes(world))
    assert plan(world) == []
    world = replace(world, replicas=(told("a", "c"), told("b", "c"), ready("c", SECOND), leaving))
    assert kinds(plan(world)) == ["Drain"]


def test_a_caller_of_which_nothing_is_known_may_still_call() -> None:
    caller = ready("a", told=None, asked={"c": "host:c"})
    world = World({FIRST: 1, SECOND: 1}, (caller, ready("c", SECOND), ready("d", SECOND, leaving=True)))
    assert "Drain" not in kinds(plan(world))


def test_scale_down_gives_up_what_is_not_ready_first() -> None:
    world = World({FIRST: 1}, (ready("a"), Replica("b", FIRST, Phase.STARTING), Replica("c", FIRST, Phase.PENDING)))
    stopped = [action.replica for action in plan(world) if isinstance(action, Stop)]
    assert stopped == ["c", "b"]
    assert "Leave" not in kinds(plan(world))


def test_on_a_node_that_is_drained_a_replica_serves_until_another_has_taken_its_place() -> None:
    gone = ready("b", displaced=True)
    world = World({FIRST: 2}, (ready("a"), gone), published=published("a", "b"))
    why = "minilm/1 stage 0 has 2 ready and 0 coming of 2, 1 of them on nodes that are drained"
    assert plan(world) == [Start(FIRST, why)]
    world = replace(world, replicas=(ready("a"), gone, Replica("c", FIRST, Phase.STARTING)))
    assert plan(world) == []
    world = replace(world, replicas=(ready("a"), gone, ready("c")), published=published("a", "b", "c"))
    assert [action.replica for action in plan(world) if isinstance(action, Leave)] == ["b"]


def test_what_has_taken_no_work_yet_is_started_elsewhere_at_once_where_its_node_is_drained() -> None:
    coming = Replica("b", FIRST, Phase.STARTING, displaced=True)
    world = World({FIRST: 2}, (ready("a"), coming), published=published("a"))
    assert kinds(plan(world)) == ["Stop", "Start"]


def test_living_workers_found_after_a_restart_are_waited_for() -> None:
    found = tuple(Replica(name, FIRST, Phase.UNKNOWN) for name in "ab")
    assert plan(World({FIRST: 2}, found)) == []


def test_adopted_workers_are_kept_and_never_fall_out_of_the_tables() -> None:
    world = World({FIRST: 1, SECOND: 1}, (adopted("a"), adopted("c", SECOND)))
    assert plan(world) == [
        Tell("a", {"c": "host:c"}, "minilm/1 stage 1 has 1 ready"),
        Publish(published("a"), "minilm/1 takes requests at ['a']"),
    ]


def test_scale_down_keeps_a_replica_that_can_hand_on() -> None:
    world = World({FIRST: 1, SECOND: 1}, (told("a", "c"), ready("b", asked={"c": "host:c"}), ready("c", SECOND)))
    assert [action.replica for action in plan(world) if isinstance(action, Leave)] == ["b"]


def test_stopping_drains_the_first_stage_before_the_next() -> None:
    nothing_wanted = {FIRST: 0, SECOND: 0}
    world = World(nothing_wanted, (told("a", "c"), ready("c", SECOND)), published=published("a"))
    actions = plan(world)
    assert [action.replica for action in actions if isinstance(action, Leave)] == ["a"]
    world = World(nothing_wanted, (ready("c", SECOND),), published=routes(World(nothing_wanted)))
    assert kinds(plan(world)) == ["Leave"]


def test_a_version_that_is_no_longer_wanted_is_drained() -> None:
    old = Replica("z", Stage("minilm", 0, 0), Phase.READY, "host:z")
    world = World({FIRST: 1}, (ready("a"), old), published=published("a"))
    assert plan(world) == [Leave("z", "minilm/0 stage 0 has 1 ready and 0 coming of 0")]


def test_a_single_stage_needs_to_be_told_nothing() -> None:
    assert routes(World({FIRST: 1}, (ready("a"),))) == published("a")


async def act(fleet: SimulatedFleet, world: World) -> World:
    """Does what the controller does with a plan's actions."""
    for action in plan(world):
        match action:
            case Start(stage, _):
                await fleet.start(stage)
            case Leave(replica, _):
                await fleet.leave(replica)
            case Tell(replica, next_stage, _):
                await fleet.tell(replica, next_stage)
            case Publish(table, _):
                world = replace(world, published=table)
            case Drain(replica, _):
                await fleet.drain(replica)
            case Stop(replica, _):
                await fleet.stop(replica)
    return world


def serving(world: World, stage: Stage) -> int:
    return sum(replica.phase is Phase.READY for replica in world.of(stage))


@settings(max_examples=150, deadline=None)
@given(data=st.data(), stages=st.integers(1, 3), seed=st.integers(0, 2**32))
def test_a_simulated_cluster_converges_and_scaling_never_leaves_a_stage_empty(
    data: st.DataObject, stages: int, seed: int
) -> None:
    randomness = random.Random(seed)
    fleet = SimulatedFleet(moves=lambda _: randomness.random() < 0.7)
    pipeline = [Stage("m", 1, index) for index in range(stages)]

    async def settle(world: World, event: str) -> World:
        for _ in range(400):
            world = replace(world, replicas=(await fleet.observe()).replicas)
            if event in ("scale", "drain"):
                assert all(serving(world, stage) >= 1 for stage in pipeline)
            if event in ("scale", "drain", "forget") and world.published is not None:
                assert world.published[0].replicas, "gateways were left with nobody to call"
            world = await act(fleet, world)
            living = tuple(fleet.replicas.values())
            done = all(
                len(world.of(stage)) == wanted and all(replica.takes_work for replica in world.of(stage))
                for stage, wanted in world.desired.items()
            )
            now = replace(world, replicas=living)
            done = done and all(replica.told == replica.asked for replica in living)
            if done and len(living) == sum(world.desired.values()) and not plan(now) and not routes(now)[0].reason:
                return now
        pytest.fail(f"did not converge: {world}")

    async def story() -> None:
        counts = st.lists(st.integers(1, 4), min_size=stages, max_size=stages)
        desired = dict(zip(pipeline, data.draw(counts), strict=True))
        world = await settle(World(desired), "start")
        for _ in range(data.draw(st.integers(0, 3))):
            event = data.draw(st.sampled_from(["scale", "kill", "drain", "forget"]))
            if event == "scale":
                desired = dict(zip(pipeline, data.draw(counts), strict=True))
            elif event == "kill":
                fleet.kill(data.draw(st.sampled_from(sorted(fleet.replicas))))
            elif event == "drain":
                for replica in data.draw(st.lists(st.sampled_from(sorted(fleet.replicas)), max_size=4)):
                    fleet.displace(replica)
            else:
                fleet.forget()
                world = replace(world, published=None)
            before = set(fleet.replicas)
            world = await settle(replace(world, desired=desired), event)
            if event == "forget":
                assert set(fleet.replicas) == before
        world = replace(world, desired=dict.fromkeys(pipeline, 0))
        for _ in range(400):
            world = await act(fleet, replace(world, replicas=(await fleet.observe()).replicas))
            for stage in pipeline[1:]:
                if world.of(stage.before):
                    assert world.of(stage), "a stage was stopped while the one before still needed it"
        assert not fleet.replicas

    asyncio.run(story())
