from pathlib import Path

import pytest

from cluster.controller import BACK_WITHIN_S
from cluster.simulated_fleet import SimulatedFleet
from cluster.state import ServedModel
from cluster.world import Pipeline
from tests.cluster.simulation import Simulation, a_rollout
from worker.errors import InvalidRequest, NotFound
from worker.nouns import Signature, TensorSpec

OLD, NEW = Pipeline("minilm", 1), Pipeline("minilm", 1, 2)


async def begun(
    folder: Path, fleet: SimulatedFleet | None = None, plan: str = "{stages: 3}", **how: float
) -> Simulation:
    simulation = Simulation(folder, fleet, minilm="{stages: 2, replicas: 2}")
    await simulation.until(lambda: simulation.replicas("minilm") == 4)
    await simulation.turn()
    assert simulation.controller.rollout("minilm", a_rollout(plan, **how)) == 2
    return simulation


async def test_another_cut_comes_up_beside_the_old_one_takes_over_and_the_old_one_goes(tmp_path: Path) -> None:
    simulation = await begun(tmp_path)
    least = []
    while simulation.replicas("minilm") or simulation.replicas("minilm", 2) < 3:
        await simulation.turn()
        table = simulation.controller.feed.table
        assert table is not None
        taking = [model for model in table.models if model.weight and model.ready]
        least.append(min(len(model.replicas) for model in taking))
        assert len(least) < 50
    assert min(least) >= 1, "at every moment some pipeline took requests"
    await simulation.until(lambda: len(simulation.fleet.replicas) == 3)
    assert simulation.controller.state.models["minilm"].config.stages == 3
    assert [(entry.served.revision, entry.what) for entry in simulation.controller.state.history] == [
        (1, "served"),
        (2, "rolled out"),
    ]
    assert simulation.store.read_state() == simulation.controller.state


async def test_the_old_one_is_not_drained_before_every_gateway_has_the_new_table(tmp_path: Path) -> None:
    simulation = await begun(tmp_path)
    await simulation.until(lambda: len(simulation.controller.state.history) == 2)
    controller = simulation.controller
    for _ in range(6):
        simulation.now += 0.5
        await controller.step()
        assert not simulation.decided("drain minilm"), "the gateway last reported the table before"
    await simulation.until(lambda: len(simulation.decided("drain minilm")) == 4)


async def test_a_canary_that_does_well_gets_everything(tmp_path: Path) -> None:
    simulation = await begun(tmp_path, canary=10, watch_s=5)
    await simulation.until(lambda: simulation.controller.state.weights == {("minilm", 1): 90, ("minilm", 2): 10})
    for _ in range(14):
        simulation.ask(OLD, answered=90)
        simulation.ask(NEW, answered=10)
        await simulation.turn()
    assert simulation.controller.state.models["minilm"].revision == 2
    assert not simulation.controller.state.weights
    await simulation.until(lambda: len(simulation.fleet.replicas) == 3)


@pytest.mark.parametrize(
    ("new", "told"),
    [
        ({"answered": 5, "failed": 5}, "failed or missed their deadline"),
        ({"answered": 30, "took_s": 0.1}, "take up to"),
    ],
)
async def test_a_canary_that_fails_or_is_slow_is_taken_back_by_itself(
    tmp_path: Path, new: dict[str, int], told: str
) -> None:
    simulation = await begun(tmp_path, canary=10, watch_s=60)
    await simulation.until(lambda: bool(simulation.controller.state.weights.get(("minilm", 2))))
    for _ in range(6):
        simulation.ask(OLD, answered=90)
        simulation.ask(NEW, **new)
        await simulation.turn()
    state = simulation.controller.state
    assert (state.models["minilm"].revision, state.rollouts) == (1, {})
    assert (state.history[-1].what, told in state.history[-1].why) == ("taken back", True)
    await simulation.until(lambda: simulation.replicas("minilm", 2) == 0 and len(simulation.fleet.replicas) == 4)
    assert simulation.replicas("minilm") == 4, "what served serves"


async def test_what_finds_no_room_is_taken_back_and_says_so(tmp_path: Path) -> None:
    simulation = await begun(tmp_path, SimulatedFleet(room=5, cpus=64), within_s=20)
    await simulation.until(lambda: not simulation.controller.state.rollouts)
    assert simulation.controller.state.history[-1].why == "it was not ready within 20 s: no room"
    assert simulation.replicas("minilm") == 4


async def test_what_no_node_could_hold_is_refused_at_once(tmp_path: Path) -> None:
    simulation = Simulation(tmp_path, SimulatedFleet(cpus=2), minilm="{stages: 1}")
    await simulation.until(lambda: simulation.replicas("minilm") == 1)
    with pytest.raises(InvalidRequest, match=r"a replica takes 8 CPU, and the largest node has 2.*keeps serving"):
        simulation.controller.rollout("minilm", a_rollout("{cpus: 8}"))
    assert simulation.controller.rollout("minilm", a_rollout("{cpus: 8}"), even_without_room=True) == 2


async def test_what_takes_other_tensors_is_refused(tmp_path: Path) -> None:
    simulation = await begun(tmp_path)
    await simulation.until(lambda: not simulation.controller.state.rollouts)
    other = Signature((TensorSpec("image", "FP32", ("batch", 3)),), (TensorSpec("vector", "FP32", ("batch", 384)),))
    wanted = a_rollout("{}")
    target: ServedModel = wanted.target.model_copy(update={"signatures": {1: other}})
    with pytest.raises(InvalidRequest, match="would take or give other tensors"):
        simulation.controller.rollout("minilm", wanted.model_copy(update={"target": target}))


async def test_one_roll_out_at_a_time_and_rollback_takes_it_back(tmp_path: Path) -> None:
    simulation = await begun(tmp_path, canary=10)
    with pytest.raises(InvalidRequest, match="a roll-out of minilm is on its way"):
        simulation.controller.rollout("minilm", a_rollout("{}"))
    assert simulation.controller.rollback("minilm") == 1
    await simulation.until(lambda: simulation.replicas("minilm", 2) == 0)
    assert simulation.replicas("minilm") == 4


async def test_rollback_brings_back_what_served_before_as_a_new_revision(tmp_path: Path) -> None:
    simulation = await begun(tmp_path)
    await simulation.until(lambda: not simulation.controller.state.rollouts)
    assert simulation.controller.rollback("minilm") == 3
    await simulation.until(lambda: not simulation.controller.state.rollouts)
    assert simulation.controller.state.models["minilm"].config.stages == 2
    with pytest.raises(NotFound, match="no revision 7 to go back to; revisions that served before: 1, 2"):
        simulation.controller.rollback("minilm", 7)
    with pytest.raises(NotFound, match="no model 'bert' is served"):
        simulation.controller.rollback("bert")


async def test_a_model_that_is_new_comes_to_serve_at_once(tmp_path: Path) -> None:
    simulation = await begun(tmp_path)
    assert simulation.controller.rollout("bert", a_rollout("{}")) == 1
    await simulation.until(lambda: simulation.replicas("bert") == 1)


async def test_a_controller_that_comes_back_finishes_nothing_before_it_has_heard_of_a_gateway(tmp_path: Path) -> None:
    simulation = await begun(tmp_path)
    simulation.fleet.forget()
    again = Simulation(tmp_path, simulation.fleet)
    for _ in range(16):
        await again.turn(reported=False)
    assert again.replicas("minilm", 2) == 3
    assert again.controller.state.models["minilm"].revision == 1, "gateways may still know the old one alone"
    await again.turn()
    assert again.controller.state.models["minilm"].revision == 2


async def test_a_controller_that_comes_back_gives_every_gateway_the_time_to_find_it(tmp_path: Path) -> None:
    simulation = await begun(tmp_path)
    simulation.fleet.forget()
    again = Simulation(tmp_path, simulation.fleet)
    quick = again.now
    while again.now < quick + BACK_WITHIN_S:
        assert again.controller.state.models["minilm"].revision == 1, "another gateway may be looking for us"
        await again.turn()
    await again.until(lambda: again.controller.state.models["minilm"].revision == 2, turns=2)


async def test_a_cluster_without_gateways_is_rolled_out_too(tmp_path: Path) -> None:
    simulation = Simulation(tmp_path, minilm="{}")
    simulation.controller.rollout("minilm", a_rollout("{stages: 2}"))
    for _ in range(100):
        await simulation.turn(reported=False)
    assert simulation.controller.state.models["minilm"].revision == 2
    assert len(simulation.fleet.replicas) == 2


async def test_what_still_drains_is_drained_by_a_controller_that_comes_back(tmp_path: Path) -> None:
    simulation = await begun(tmp_path)
    await simulation.until(lambda: not simulation.controller.state.rollouts)
    simulation.fleet.forget()
    again = Simulation(tmp_path, simulation.fleet)
    await again.until(lambda: len(simulation.fleet.replicas) == 3)
    drained = [name for call, name in simulation.fleet.calls if call == "drain"]
    assert len(drained) == 4
    assert again.controller.state.known("minilm", 1) is not None, "a real fleet needs its settings until then"


async def test_a_controller_that_comes_back_goes_on_with_the_roll_out(tmp_path: Path) -> None:
    simulation = await begun(tmp_path, canary=10, watch_s=5)
    await simulation.until(lambda: bool(simulation.controller.state.weights.get(("minilm", 2))))
    before = set(simulation.fleet.replicas)
    simulation.fleet.forget()
    again = Simulation(tmp_path, simulation.fleet)
    for _ in range(30):
        again.ask(OLD, answered=90)
        again.ask(NEW, answered=10)
        await again.turn()
    assert again.controller.state.models["minilm"].revision == 2
    assert set(again.fleet.replicas) < before, "nobody was started anew"
