"""A roll-out of a model that runs on more replicas than it was given at first: no move makes them fewer."""

from pathlib import Path

import pytest

from cluster.handover import at_least, begins_with, beside
from cluster.simulated_fleet import SimulatedFleet
from cluster.state import ServedModel, State
from cluster.world import Phase, Pipeline
from tests.cluster.simulation import TOKEN, Simulation, a_rollout, served

OLD, NEW = Pipeline("minilm", 1), Pipeline("minilm", 1, 2)
SCALED = "autoscaling: {max: 8, target_utilisation: 0.5, up_delay_s: 0, down_delay_s: 10}"
BUSY = {"rows": 80, "inflight": 20}
"""160 rows a second of 20 ms, at half utilisation: 6.4 replicas."""


async def busy(folder: Path, fleet: SimulatedFleet | None = None, plan: str = f"{{{SCALED}}}") -> Simulation:
    """A model of one stage that needs 7 replicas and has them."""
    simulation = Simulation(folder, fleet, minilm=plan)
    for _ in range(20):
        simulation.ask(OLD, **BUSY)
        await simulation.turn()
    assert simulation.replicas("minilm") == 7
    return simulation


async def under_load(simulation: Simulation, turns: int = 80) -> list[int]:
    """Turns until the roll-out has ended: the replicas of the pipeline that serves, at each."""
    serving = []
    for _ in range(turns):
        state = simulation.controller.state
        serves = state.models["minilm"].revision
        serving.append(simulation.replicas("minilm", serves))
        if not state.rollouts:
            break
        new = 80 * state.weights["minilm", 2] // 100
        simulation.ask(OLD, rows=80 - new, inflight=20, answered=80 - new)
        simulation.ask(NEW, rows=new, answered=new)
        await simulation.turn()
    return serving


async def test_a_scaled_model_is_given_to_as_many_replicas_as_served_it(tmp_path: Path) -> None:
    simulation = await busy(tmp_path)
    simulation.controller.rollout("minilm", a_rollout(f"{{{SCALED}}}"))
    assert simulation.controller.state.rollouts["minilm"].target.replicas == {1: (7,)}
    assert min(await under_load(simulation)) == 7
    assert simulation.controller.state.models["minilm"].revision == 2


async def test_another_cut_is_given_the_requests_when_it_has_what_they_need(tmp_path: Path) -> None:
    simulation = await busy(tmp_path)
    patient = SCALED.replace("up_delay_s: 0", "up_delay_s: 5")
    simulation.controller.rollout("minilm", a_rollout(f"{{stages: 2, {patient}}}"))
    assert simulation.controller.state.rollouts["minilm"].target.replicas == {1: (1, 1)}
    assert min(await under_load(simulation)) == 7
    assert simulation.replicas("minilm", 2) == 14
    assert simulation.counts("minilm") == (7, 7)


@pytest.mark.parametrize(("plan", "begun"), [(SCALED, (7,)), (f"stages: 2, {SCALED}", (1, 1))])
async def test_nothing_is_decided_before_it_is_known_what_a_row_costs(
    tmp_path: Path, plan: str, begun: tuple[int, ...]
) -> None:
    simulation = await busy(tmp_path)
    simulation.controller.rollout("minilm", a_rollout(f"{{{plan}}}"))
    for _ in range(40):
        simulation.ask(OLD, **BUSY)
        await simulation.turn(told=False)
    state = simulation.controller.state
    assert (state.models["minilm"].revision, state.rollouts["minilm"].target.replicas) == (1, {1: begun})


async def test_a_canary_is_sized_for_everything_and_the_old_one_stays_so(tmp_path: Path) -> None:
    simulation = await busy(tmp_path)
    simulation.controller.rollout("minilm", a_rollout(f"{{{SCALED}}}", canary=50, watch_s=20))
    assert min(await under_load(simulation)) == 7
    assert simulation.controller.state.models["minilm"].revision == 2
    assert not simulation.decided("not 7"), "neither was scaled"


async def test_nothing_shrinks_before_the_requests_are_counted_as_the_new_ones(tmp_path: Path) -> None:
    hasty = "{autoscaling: {max: 8, target_utilisation: 0.5, up_delay_s: 0, down_delay_s: 0}}"
    simulation = await busy(tmp_path, plan=hasty)
    simulation.controller.rollout("minilm", a_rollout(hasty))
    assert min(await under_load(simulation)) == 7
    for _ in range(6):
        await simulation.turn()
        assert simulation.counts("minilm") == (7,), "no gateway has yet told of a request to it"


@pytest.mark.parametrize("down_delay_s", [0, 2])
async def test_a_controller_that_comes_back_takes_nothing_away_before_gateways_had_the_time_to_find_it(
    tmp_path: Path, down_delay_s: float
) -> None:
    hasty = f"{{autoscaling: {{max: 8, target_utilisation: 0.5, up_delay_s: 0, down_delay_s: {down_delay_s}}}}}"
    before = await busy(tmp_path, plan=hasty)
    back = Simulation(tmp_path, before.fleet)
    for _ in range(12):
        await back.turn(reported=False)
        assert back.counts("minilm") == (7,)
    for _ in range(20):
        back.ask(OLD, **BUSY)
        await back.turn()
        assert back.counts("minilm") == (7,)
    back.ask(OLD)
    await back.until(lambda: back.counts("minilm") == (1,), turns=20)


@pytest.mark.parametrize("down_delay_s", [0, 1, 2])
async def test_what_gets_its_requests_back_does_not_shrink_before_it_has_seen_a_window_of_them(
    tmp_path: Path, down_delay_s: float
) -> None:
    hasty = f"{{autoscaling: {{max: 8, target_utilisation: 0.5, up_delay_s: 0, down_delay_s: {down_delay_s}}}}}"
    simulation = await busy(tmp_path, plan=hasty)
    simulation.controller.rollout("minilm", a_rollout(hasty, canary=90, watch_s=60))
    for _ in range(20):
        new = 80 * simulation.controller.state.weights["minilm", 2] // 100
        simulation.ask(OLD, rows=80 - new, inflight=20 - new // 4, answered=80 - new)
        simulation.ask(NEW, rows=new, inflight=new // 4, answered=new)
        await simulation.turn()
    assert simulation.controller.state.weights["minilm", 2] == 90
    simulation.controller.rollback("minilm")
    simulation.ask(NEW)
    for rows in (8, 8, *[80] * 8):
        simulation.ask(OLD, rows=rows, inflight=2, answered=rows)
        await simulation.turn()
        assert simulation.counts("minilm") == (7,)
    simulation.ask(OLD)
    await simulation.until(lambda: simulation.counts("minilm") == (1,), turns=60)


async def test_where_there_is_no_room_for_both_what_serves_keeps_its_own(tmp_path: Path) -> None:
    simulation = await busy(tmp_path, SimulatedFleet(cpus=10))
    simulation.controller.rollout("minilm", a_rollout(f"{{{SCALED}}}", within_s=20))
    assert min(await under_load(simulation)) == 7
    last = simulation.controller.state.history[-1]
    why = "it was not ready within 20 s: stage 0 should have 7 replicas, and there is room for 3"
    assert (last.what, last.why) == ("taken back", why)


@pytest.mark.parametrize("least", [1, 4])
async def test_where_there_is_no_room_at_all_what_serves_gives_nothing_away(tmp_path: Path, least: int) -> None:
    scaled = f"{{{SCALED.replace('max', f'min: {least}, max')}}}"
    simulation = await busy(tmp_path, SimulatedFleet(cpus=7), scaled)
    simulation.controller.rollout("minilm", a_rollout(scaled, within_s=20))
    assert min(await under_load(simulation)) == 7
    assert simulation.controller.state.history[-1].what == "taken back"


async def test_a_rollback_comes_back_with_as_many_as_serve(tmp_path: Path) -> None:
    simulation = Simulation(tmp_path, minilm=f"{{{SCALED}}}")
    await simulation.until(lambda: simulation.replicas("minilm") == 1)
    simulation.controller.rollout("minilm", a_rollout(f"{{{SCALED}}}"))
    await simulation.until(lambda: not simulation.controller.state.rollouts)
    for _ in range(20):
        simulation.ask(NEW, **BUSY)
        await simulation.turn()
    simulation.controller.rollback("minilm")
    assert simulation.controller.state.rollouts["minilm"].target.replicas == {1: (7,)}


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


async def test_a_canary_that_nobody_asks_keeps_a_replica(tmp_path: Path) -> None:
    asleep = "{autoscaling: {min: 0, max: 8, down_delay_s: 10}}"
    simulation = Simulation(tmp_path, minilm=asleep)
    simulation.controller.rollout("minilm", a_rollout(asleep, canary=10, watch_s=3600))
    for _ in range(80):
        await simulation.turn()
    assert (simulation.replicas("minilm"), simulation.replicas("minilm", 2)) == (0, 1)


async def test_what_scale_set_outlives_a_roll_out_and_so_does_what_it_sets_meanwhile(tmp_path: Path) -> None:
    simulation = Simulation(tmp_path, minilm="{replicas: 2}")
    simulation.controller.scale("minilm", None, 5)
    await simulation.until(lambda: simulation.replicas("minilm") == 5)
    simulation.controller.rollout("minilm", a_rollout("{replicas: 2, drain_s: 3}"))
    await simulation.turn()
    simulation.controller.scale("minilm", 0, 6)
    await simulation.until(lambda: not simulation.controller.state.rollouts)
    assert simulation.replicas("minilm", 2) == 6
    simulation.controller.rollout("minilm", a_rollout("{replicas: 3}"))
    await simulation.until(lambda: not simulation.controller.state.rollouts)
    assert simulation.counts("minilm") == (3,), "model.yaml says another number now"


async def test_a_rollback_to_another_cut_begins_with_what_it_had_last(tmp_path: Path) -> None:
    simulation = Simulation(tmp_path, minilm="{stages: 2}")
    simulation.controller.scale("minilm", 1, 4)
    simulation.controller.rollout("minilm", a_rollout("{stages: 3}"))
    await simulation.until(lambda: not simulation.controller.state.rollouts)
    simulation.controller.rollback("minilm")
    assert simulation.controller.state.rollouts["minilm"].target.replicas == {1: (1, 4)}


def counted(text: str, **replicas: int) -> ServedModel:
    """`replicas`: of each version, named v1 and so on."""
    model = served(text)
    return model.model_copy(update={"replicas": {int(name[1:]): (count,) for name, count in replicas.items()}})


@pytest.mark.parametrize(
    ("target", "now", "replicas"),
    [
        (counted("{autoscaling: {max: 6}}", v1=1), counted("{autoscaling: {max: 9}}", v1=9), {1: (6,)}),
        (counted("{autoscaling: {max: 6}}", v1=4), counted("{autoscaling: {max: 9}}", v1=2), {1: (4,)}),
        (counted("{autoscaling: {max: 6, min: 0}}", v1=0), counted("{autoscaling: {max: 9, min: 0}}", v1=0), {1: (1,)}),
        (counted("{autoscaling: {max: 9}}", v1=1), served("{stages: 2, replicas: 4}"), {1: (1,)}),
        (counted("{autoscaling: {max: 9}}", v2=1, v3=1), counted("{}", v1=3, v2=5), {2: (5,), 3: (5,)}),
        (counted("{replicas: 2}", v2=2), counted("{replicas: 2}", v1=1), {2: (1,)}),
        (counted("{replicas: 3}", v1=3), counted("{replicas: 2}", v1=5), {1: (3,)}),
        (counted("{}", v1=1), counted("{autoscaling: {max: 9}}", v1=5), {1: (1,)}),
    ],
)
def test_with_how_many_replicas_a_roll_out_begins(
    target: ServedModel, now: ServedModel, replicas: dict[int, tuple[int, ...]]
) -> None:
    assert begins_with(target, now).replicas == replicas


def test_a_rollback_keeps_what_serves_also_where_another_number_was_in_the_file() -> None:
    assert at_least(counted("{replicas: 2}", v1=2), counted("{replicas: 8}", v1=8)).replicas == {1: (8,)}


def test_whose_requests_a_version_gets() -> None:
    target = counted("{}", v2=1, v3=1).model_copy(update={"revision": 2})
    rollout = a_rollout("{}").model_copy(update={"target": target})
    models = {"minilm": counted("{}", v1=1, v2=1), "bert": counted("{}", v1=1)}
    state = State(repository="/models", host=None, token=TOKEN, models=models, rollouts={"minilm": rollout})
    second, third = Pipeline("minilm", 2, 2), Pipeline("minilm", 3, 2)
    newest = Pipeline("minilm", 2)
    assert beside(state) == {second: [newest], third: [newest], newest: [second, third]}
