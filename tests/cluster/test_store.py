import threading
from pathlib import Path

import pytest

from cluster.simulated_fleet import SimulatedFleet
from cluster.state import State, StateDir, StateError
from cluster.store import FileStore, Superseded
from tests.cluster.simulation import TOKEN, Simulation


def state(generation: int = 0) -> State:
    return State(generation=generation, repository="/models", host=None, token=TOKEN, models={})


def test_a_later_claim_shuts_out_every_earlier_one(tmp_path: Path) -> None:
    first, second = FileStore(StateDir(tmp_path)), FileStore(StateDir(tmp_path))
    assert first.claim() == 1
    first.write_state(state(5))
    first.check()
    assert second.claim() == 2
    assert second.read_state().generation == 5
    with pytest.raises(Superseded, match="controller 2 has taken over from controller 1"):
        first.check()
    with pytest.raises(Superseded):
        first.write_state(state(6))
    second.write_state(state(7))
    assert second.read_state().generation == 7
    assert first.claim() == 3, "it may come back, as a newer one"


def test_of_many_that_claim_at_once_one_is_left_and_no_epoch_is_given_twice(tmp_path: Path) -> None:
    stores = [FileStore(StateDir(tmp_path)) for _ in range(16)]
    epochs: list[int] = []
    threads = [threading.Thread(target=lambda one=store: epochs.append(one.claim())) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert sorted(epochs) == list(range(1, 17))
    alive = []
    for store in stores:
        try:
            store.write_state(state())
        except Superseded:
            continue
        alive.append(store)
    assert len(alive) == 1


def test_a_damaged_epoch_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "controller.epoch").write_text("x")
    with pytest.raises(StateError, match=r"controller\.epoch: holds no number; remove it"):
        FileStore(StateDir(tmp_path)).claim()


def test_a_store_keeps_its_name_as_long_as_its_epochs_and_one_that_begins_anew_has_another(tmp_path: Path) -> None:
    stores = [FileStore(StateDir(tmp_path / name)) for name in ("one", "one", "other")]
    assert [store.claim() for store in stores] == [1, 2, 1]
    assert stores[0].id == stores[1].id != stores[2].id
    (tmp_path / "one" / "controller.epoch").unlink()
    again = FileStore(StateDir(tmp_path / "one"))
    assert again.claim() == 1
    assert again.id not in {store.id for store in stores}


def test_an_epoch_that_was_written_before_stores_had_names_is_counted_on(tmp_path: Path) -> None:
    (tmp_path / "controller.epoch").write_text("7")
    store = FileStore(StateDir(tmp_path))
    assert store.claim() == 8
    assert store.id


async def test_gateways_are_told_the_name_of_the_store(tmp_path: Path) -> None:
    one = Simulation(tmp_path, minilm="{}")
    await one.turn()
    assert one.controller.feed.table is not None
    assert one.controller.feed.table.store == one.store.id


async def test_a_controller_that_was_superseded_does_nothing_more(tmp_path: Path) -> None:
    fleet = SimulatedFleet(cpus=64)
    old = Simulation(tmp_path, fleet, minilm="{replicas: 2}")
    await old.until(lambda: old.replicas("minilm") == 2)
    Simulation(tmp_path, SimulatedFleet(), minilm="{}")
    fleet.kill(next(iter(fleet.replicas)))
    with pytest.raises(Superseded):
        await old.controller.step()
    assert [call for call, _ in fleet.calls].count("start") == 2
    with pytest.raises(Superseded):
        old.controller.scale("minilm", None, 3)
    with pytest.raises(Superseded):
        await old.controller.run_forever()
