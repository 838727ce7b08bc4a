from dataclasses import replace
from pathlib import Path

from cluster.backoff import STEADY_AFTER_S, Deaths
from cluster.simulated_fleet import SimulatedFleet
from cluster.world import Phase, Replica, Stage
from tests.cluster.simulation import Simulation, a_rollout

STAGE = Stage("minilm", 1, 0)


def ready(name: str) -> Replica:
    return Replica(name, STAGE, Phase.READY)


def dead(name: str) -> Replica:
    return replace(ready(name), phase=Phase.DEAD, why="it ran out of memory")


def count(deaths: Deaths) -> int:
    return deaths.failures[STAGE].count if STAGE in deaths.failures else 0


def test_a_sibling_that_lives_does_not_hide_that_a_stage_crashes() -> None:
    deaths, now = Deaths(), 0.0
    for number in range(5):
        for replicas in ([ready("a")], [ready("a"), dead(f"b{number}")], [ready("a")]):
            now += STEADY_AFTER_S
            deaths.look(replicas, now)
    assert count(deaths) == 5
    assert "die one after the other" in deaths.failures[STAGE].held_back(deaths.failures[STAGE].last_at + 7.9)


def test_a_replica_that_came_after_the_last_death_and_is_steady_makes_it_forgotten() -> None:
    deaths = Deaths()
    deaths.look([ready("a"), dead("b")], 100.0)
    deaths.look([ready("a"), ready("c")], 101.0)
    deaths.look([ready("a"), ready("c")], 101.0 + STEADY_AFTER_S - 0.1)
    assert count(deaths) == 1
    deaths.look([ready("a"), ready("c")], 101.0 + STEADY_AFTER_S)
    assert count(deaths) == 0


def test_a_death_that_is_seen_twice_counts_once() -> None:
    deaths = Deaths()
    for now in range(3):
        deaths.look([dead("a")], float(now))
    assert count(deaths) == 1


def test_replicas_that_served_and_die_with_their_node_are_all_replaced_at_once() -> None:
    deaths, names = Deaths(), "abcdefgh"
    deaths.look(map(ready, names), 0.0)
    deaths.look(map(ready, names), STEADY_AFTER_S)
    deaths.look(map(dead, names), STEADY_AFTER_S + 1)
    assert count(deaths) == 1
    assert not deaths.failures[STAGE].held_back(STEADY_AFTER_S + 1)


async def test_a_roll_out_is_taken_back_when_three_die_although_a_sibling_lives(tmp_path: Path) -> None:
    well: set[str] = set()
    fleet = SimulatedFleet(cpus=64, moves=lambda one: one.phase is not Phase.STARTING or one.id in well)
    simulation = Simulation(tmp_path, fleet, minilm="{}")
    await simulation.turn()
    well.update(fleet.replicas)
    await simulation.until(lambda: simulation.replicas("minilm") == 1)
    simulation.controller.rollout("minilm", a_rollout("{replicas: 2}"))
    await simulation.turn()
    well.add(next(name for name in fleet.replicas if name not in well))
    for _ in range(30):
        for name, one in list(fleet.replicas.items()):
            if name not in well and one.phase is Phase.STARTING:
                fleet.kill(name)
        await simulation.turn(STEADY_AFTER_S)
    last = simulation.controller.state.history[-1]
    assert (last.what, last.why.partition(":")[0]) == ("taken back", "3 of its replicas died")
    assert simulation.replicas("minilm") == 1
