import asyncio
from pathlib import Path

from cluster.fleet import Bundle, shown
from cluster.simulated_fleet import SimulatedFleet
from cluster.world import Pipeline
from tests.cluster.simulation import Simulation

ONE = Pipeline("minilm", 1)
SCALED = "{stages: 2, autoscaling: {max: 20, target_utilisation: 0.5, up_delay_s: 1, down_delay_s: 10}}"
ASLEEP = "{stages: 2, autoscaling: {min: 0, max: 20, down_delay_s: 10, from_zero_wait_s: 30}}"


async def test_a_burst_is_answered_in_one_step_and_says_what_was_seen(tmp_path: Path) -> None:
    simulation = Simulation(tmp_path, minilm=SCALED)
    await simulation.until(lambda: simulation.replicas("minilm") == 2)
    for _ in range(12):
        simulation.ask(ONE, rows=100, inflight=50)
        await simulation.turn()
    assert simulation.counts("minilm") == (8, 8), "200 rows/s of 20 ms, at half utilisation"
    (why,) = simulation.decided("want 8 and 8 replicas of minilm/1, not 1 and 1") or ("",)
    assert "rows/s are asked for; 50 requests are in flight" in why
    assert "stage 1 computes 20.00 ms a row" in why


async def test_when_it_is_over_only_the_delay_is_waited_for(tmp_path: Path) -> None:
    simulation = Simulation(tmp_path, minilm=SCALED)
    await simulation.until(lambda: simulation.replicas("minilm") == 2)
    for _ in range(12):
        simulation.ask(ONE, rows=100, inflight=50)
        await simulation.turn()
    simulation.ask(ONE)
    over = simulation.now
    await simulation.until(lambda: simulation.counts("minilm") == (1, 1))
    assert 9 <= simulation.now - over <= 14
    await simulation.until(lambda: simulation.replicas("minilm") == 2)


async def test_replicas_that_only_start_are_dropped_before_those_that_work(tmp_path: Path) -> None:
    held: set[str] = set()
    fleet = SimulatedFleet(cpus=64, moves=lambda replica: replica.id not in held)
    simulation = Simulation(tmp_path, fleet, minilm="{autoscaling: {max: 8, down_delay_s: 3}}")
    await simulation.until(lambda: simulation.replicas("minilm") == 1)
    working = set(fleet.replicas)
    for _ in range(4):
        simulation.ask(ONE, rows=200, inflight=5)
        await simulation.turn()
        held.update(set(fleet.replicas) - working)
    assert len(fleet.replicas) == 8
    simulation.ask(ONE)
    await simulation.until(lambda: set(fleet.replicas) == working)
    assert not simulation.decided("drain")


async def test_replicas_that_load_for_long_are_kept_while_what_they_are_for_waits(tmp_path: Path) -> None:
    held: set[str] = set()
    fleet = SimulatedFleet(cpus=64, moves=lambda replica: replica.id not in held)
    simulation = Simulation(tmp_path, fleet, minilm="{autoscaling: {max: 20, up_delay_s: 1, down_delay_s: 3}}")
    await simulation.until(lambda: simulation.replicas("minilm") == 1)
    working = set(fleet.replicas)
    for look in range(40):
        simulation.ask(ONE, rows=10, inflight=500, unplaced=500 + 10 * look)
        await simulation.turn()
        held.update(set(fleet.replicas) - working)
    assert len(simulation.decided("want ")) == 1
    assert not simulation.decided("stop ")
    held.clear()
    await simulation.until(lambda: simulation.replicas("minilm") == simulation.counts("minilm")[0])


async def test_nothing_is_kept_while_nobody_asks_and_the_first_request_brings_every_stage_back(tmp_path: Path) -> None:
    simulation = Simulation(tmp_path, minilm=ASLEEP)
    await simulation.until(lambda: not simulation.fleet.replicas and simulation.counts("minilm") == (0, 0))
    table = simulation.controller.feed.table
    assert table is not None
    assert (table.models[0].ready, table.models[0].limits.start_wait_s) == (False, 30.0)
    assert "the next request wakes it" in table.models[0].reason
    simulation.ask(ONE, rows=1, inflight=1, unplaced=1)
    await simulation.turn()
    assert simulation.counts("minilm") == (1, 1), "at once"
    await simulation.until(lambda: simulation.replicas("minilm") == 2)
    await simulation.turn()
    assert simulation.controller.feed.table is not None
    assert simulation.controller.feed.table.models[0].ready


async def test_a_gateway_that_vanishes_with_requests_in_flight_leaks_nothing(tmp_path: Path) -> None:
    simulation = Simulation(tmp_path, minilm=ASLEEP)
    await simulation.until(lambda: simulation.replicas("minilm") == 2)
    simulation.ask(ONE, rows=5, inflight=5)
    await simulation.turn()
    controller = simulation.controller
    for _ in range(60):
        simulation.now += 0.5
        await controller.step()
    assert not simulation.fleet.replicas


async def test_a_model_that_is_flooded_does_not_starve_another(tmp_path: Path) -> None:
    scaled = "{autoscaling: {max: 100, target_utilisation: 0.5, up_delay_s: 0, down_delay_s: 5}}"
    simulation = Simulation(tmp_path, SimulatedFleet(cpus=12), flooded=scaled, other=scaled)
    flooded, other = Pipeline("flooded", 1), Pipeline("other", 1)
    for _ in range(10):
        simulation.ask(flooded, rows=5000, inflight=1000)
        simulation.ask(other, rows=25, inflight=5)
        await simulation.turn()
    assert (simulation.counts("flooded"), simulation.counts("other")) == ((10,), (2,))
    assert len(simulation.fleet.asked_for) == 90, "Ray's autoscaler is told what would be needed"
    for _ in range(10):
        simulation.ask(flooded, rows=5000, inflight=1000)
        simulation.ask(other, rows=5000, inflight=1000)
        await simulation.turn()
    assert (simulation.counts("flooded"), simulation.counts("other")) == ((6,), (6,))
    assert any("other models want room too" in why for why in simulation.decided("want 6 replicas"))


async def test_what_finds_no_room_is_asked_for_with_the_labels_that_its_node_must_have(tmp_path: Path) -> None:
    text = "cpus: 1, placement: {labels: [{kind: a}, {}]}, autoscaling: {max: 9, up_delay_s: 0}"
    simulation = Simulation(tmp_path, SimulatedFleet(cpus=4), minilm=f"{{stages: 2, {text}}}")
    for _ in range(5):
        simulation.ask(ONE, rows=5000, inflight=1000)
        await simulation.turn()
    first, second = Bundle({"CPU": 1.0}, {"kind": "a"}), Bundle({"CPU": 1.0})
    assert simulation.fleet.asked_for == (first,) * 7 + (second,) * 7


async def test_a_cluster_that_is_stopped_asks_for_no_nodes_any_more(tmp_path: Path) -> None:
    simulation = Simulation(tmp_path, SimulatedFleet(cpus=12), minilm=SCALED)
    for _ in range(10):
        simulation.ask(ONE, rows=5000, inflight=1000)
        await simulation.turn()
    assert simulation.fleet.asked_for
    stopping = asyncio.create_task(simulation.controller.stop())
    await asyncio.sleep(0)
    await simulation.turn()
    assert not simulation.fleet.asked_for
    assert simulation.decided("ask for no more nodes") == ["asked to stop"]
    stopping.cancel()


async def test_what_is_asked_of_ray_is_told_when_it_changes_and_why(tmp_path: Path) -> None:
    simulation = Simulation(
        tmp_path, SimulatedFleet(cpus=10), minilm="{autoscaling: {max: 20, up_delay_s: 0}, cpus: 2}"
    )
    for _ in range(12):
        simulation.ask(ONE, rows=400, inflight=40)
        await simulation.turn()
    assert simulation.decided("ask for nodes with room for 15 x (CPU 2)") == [
        "minilm/1 stage 0: 20 replicas are wanted, and there is room for 5"
    ]
    told = len(simulation.decided("ask for"))
    for _ in range(4):
        simulation.ask(ONE, rows=400, inflight=40)
        await simulation.turn()
    assert len(simulation.decided("ask for")) == told, "the same is asked again at each step, and not told again"
    simulation.ask(ONE)
    await simulation.until(lambda: not simulation.fleet.asked_for, turns=300)
    assert simulation.decided("ask for no more nodes") == ["there is room for every replica that is wanted on 1 node"]


async def test_a_wish_that_goes_up_and_down_a_little_is_told_once_and_its_halves_as_it_ends(tmp_path: Path) -> None:
    simulation = Simulation(tmp_path, SimulatedFleet(cpus=4), minilm="{autoscaling: {max: 200, up_delay_s: 2}}")
    await simulation.until(lambda: simulation.replicas("minilm") == 1)
    for look in range(40):
        simulation.ask(ONE, rows=900 + 200 * (look % 2), inflight=500)
        await simulation.turn()
    assert len(simulation.decided("ask for")) == 1
    for left in range(3000, 0, -50):
        simulation.ask(ONE, rows=10, inflight=left, unplaced=left)
        await simulation.turn()
    assert 3 < len(simulation.decided("ask for")) < 9
    assert simulation.decided("ask for")[-1].startswith("there is room for every replica")


def test_bundles_are_told_by_what_they_take_and_the_labels_of_their_node() -> None:
    one, other = Bundle({"CPU": 1.0, "memory": 2.0**29}, {"kind": "gpu"}), Bundle({"CPU": 0.5})
    assert shown((one, other, one)) == "2 x (CPU 1, memory 0.5 GiB, kind=gpu) and 1 x (CPU 0.5)"


async def test_a_clock_that_jumps_scales_nothing(tmp_path: Path) -> None:
    simulation = Simulation(tmp_path, minilm=SCALED)
    await simulation.until(lambda: simulation.replicas("minilm") == 2)
    for _ in range(12):
        simulation.ask(ONE, rows=100, inflight=50)
        await simulation.turn()
    before = simulation.counts("minilm")
    for jump in (-50.0, 3600.0):
        simulation.ask(ONE, rows=100, inflight=50)
        await simulation.turn(jump)
        assert simulation.counts("minilm") == before
