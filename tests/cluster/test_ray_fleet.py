"""Workers as actors of a real Ray, which find no artifact: what is tested is that none, and no room, is ever lost."""

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import ray.util

from cluster.health import HealthLimits
from cluster.launch import embedded_ray
from cluster.ray_fleet import RayFleet
from cluster.ray_found import PREFIX
from cluster.state import HistoryEntry, ServedModel, State
from cluster.world import Phase, Stage
from tests.cluster.simulation import TOKEN, served
from worker.errors import Unavailable

STAGE = Stage("minilm", 1, 0)
LIGHT = "{cpus: 0.1}"


@pytest.fixture(scope="module")
def in_ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with embedded_ray(tmp_path_factory.mktemp("fleet"), cpus=1):
        yield


def state(now: ServedModel, *past: ServedModel) -> State:
    history = tuple(HistoryEntry(unix_s=0, model="minilm", what="served", why="", served=one) for one in past)
    return State(repository="/none", host="127.0.0.1", token=TOKEN, models={"minilm": now}, history=history)


def rooms() -> int:
    """Placement groups that hold room."""
    return sum(group["state"] != "REMOVED" for group in ray.util.placement_group_table().values())


async def seen(fleet: RayFleet) -> list[str]:
    return [replica.id for replica in (await fleet.observe()).replicas]


async def test_a_controller_that_comes_back_keeps_what_still_drains_and_ends_what_nobody_knows(in_ray: None) -> None:
    old, new = served(LIGHT), served(LIGHT).model_copy(update={"revision": 2})
    first = RayFleet(state(old))
    started = await first.start(STAGE, old)
    await first.close()
    second = RayFleet(state(new, old, new))
    assert await seen(second) == [started], "its revision serves no longer, and what it owes is answered"
    await second.close()
    third = RayFleet(state(new))
    assert await seen(third) == []
    await third.close()
    assert rooms() == 0


async def test_what_is_found_counts_for_its_node_before_it_has_told_where_it_is(in_ray: None) -> None:
    model = served(LIGHT)
    first = RayFleet(state(model))
    started = await first.start(STAGE, model)
    assert ray.util.get_placement_group(f"{PREFIX}/{state(model).run}/{started}").wait(30)
    await first.close()
    second = RayFleet(state(model))
    sighting = await second.observe()
    assert [node.replicas for node in sighting.nodes] == [1]
    await second.stop(started)
    await second.close()


async def test_where_ray_fails_while_workers_are_found_nothing_is_ended_and_the_next_look_finds_them(
    in_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(name: str, namespace: str) -> Any:
        raise ValueError(f"Failed to look up actor with name {name!r}")  # as it says also where it cannot tell

    model = served(LIGHT)
    first = RayFleet(state(model))
    started = {await first.start(STAGE, model), await first.start(STAGE, model)}
    await first.close()
    second = RayFleet(state(model))
    with monkeypatch.context() as failing:
        failing.setattr("ray.get_actor", fails)
        with pytest.raises(Unavailable, match="Ray lists"):
            await second.observe()
    assert (set(await seen(second)), rooms()) == (started, 2)
    for replica in started:
        await second.stop(replica)
    await second.close()


async def test_a_replica_that_waits_for_room_waits_on_after_its_controller_has_gone(in_ray: None) -> None:
    model = served("{cpus: 2}")
    first = RayFleet(state(model))
    started = await first.start(STAGE, model)
    await first.close()
    second = RayFleet(state(model), limits=HealthLimits(frozen_after_s=0.0))
    for _ in range(3):
        (found,) = (await second.observe()).replicas
        assert (found.id, found.phase, found.told) == (started, Phase.PENDING, {}), found.why
    await second.stop(started)
    assert (await seen(second), rooms()) == ([], 0)
    await second.close()


async def test_a_stop_that_does_not_get_through_can_be_done_again(in_ray: None) -> None:
    model = served(LIGHT)
    fleet = RayFleet(state(model))
    assert await seen(fleet) == [], "nothing is left to be found by its name later"
    started = await fleet.start(STAGE, model)
    stopping = asyncio.create_task(fleet.stop(started))
    await asyncio.sleep(0)
    stopping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stopping
    assert await seen(fleet) == [started]
    await fleet.stop(started)
    assert (await seen(fleet), rooms()) == ([], 0)
    await fleet.close()


async def test_a_worker_that_cannot_be_made_leaves_no_room_taken(in_ray: None) -> None:
    model = served(LIGHT)
    fleet = RayFleet(state(model))
    assert await seen(fleet) == []
    unsendable = model.config.model_copy(update={"handler": threading.Lock()})
    with pytest.raises(TypeError, match="lock"):
        await fleet.start(STAGE, model.model_copy(update={"config": unsendable}))
    assert (await seen(fleet), rooms()) == ([], 0)
    await fleet.close()
