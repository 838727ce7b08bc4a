"""A roll-out takes over from what serves without a moment in which nobody does."""

from pathlib import Path

from cluster.simulated_fleet import SimulatedFleet
from cluster.world import Phase
from tests.cluster.simulation import Simulation, a_rollout


async def test_a_model_that_sleeps_is_not_rolled_out_before_a_replica_of_the_new_one_is_ready(tmp_path: Path) -> None:
    slow: set[str] = set()
    fleet = SimulatedFleet(cpus=64, moves=lambda one: one.stage.revision == 1 or one.id not in slow)
    asleep = "{autoscaling: {min: 0, max: 8, down_delay_s: 10}}"
    simulation = Simulation(tmp_path, fleet, minilm=asleep)
    await simulation.until(lambda: simulation.counts("minilm") == (0,) and not fleet.replicas)
    simulation.controller.rollout("minilm", a_rollout(asleep))
    await simulation.turn()
    slow.update(fleet.replicas)
    for _ in range(60):
        await simulation.turn()
    state = simulation.controller.state
    assert (state.models["minilm"].revision, state.rollouts["minilm"].target.replicas) == (1, {1: (1,)})
    slow.clear()
    await simulation.until(lambda: not simulation.controller.state.rollouts)
    assert [one.phase for one in fleet.replicas.values()] == [Phase.READY]
    await simulation.until(lambda: not fleet.replicas, turns=80)
