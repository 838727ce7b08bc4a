"""The controller's state in a real Ray's storage."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import ray.experimental.internal_kv as ray_kv

from cluster.launch import embedded_ray
from cluster.ray_store import RayStore, store_name
from cluster.state import State, StateError
from cluster.store import Superseded

pytestmark = pytest.mark.slow


def state(generation: int) -> State:
    return State(generation=generation, repository="/models", host=None, token="0123456789abcdef", models={})


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with embedded_ray(tmp_path_factory.mktemp("store"), cpus=1):
        yield


def test_what_is_written_is_read_by_the_next_and_the_one_before_is_shut_out(storage: None) -> None:
    first, second = RayStore("a"), RayStore("a")
    assert first.claim() == 1
    with pytest.raises(StateError, match="holds no state of this run"):
        first.read_state()
    first.write_state(state(5))
    assert second.claim() == 2
    assert second.read_state().generation == 5
    with pytest.raises(Superseded, match="controller 2 has taken over from controller 1"):
        first.write_state(state(6))
    with pytest.raises(Superseded):
        first.check()
    second.write_state(state(7))
    for epoch in range(3, 8):
        third = RayStore("a")
        assert third.claim() == epoch
        assert third.read_state().generation == 7
    with pytest.raises(Superseded):
        first.check()
    with pytest.raises(Superseded):
        second.check()


def test_runs_do_not_see_each_other(storage: None) -> None:
    one, other = RayStore(store_name(Path("/state/one"))), RayStore(store_name(Path("/state/other")))
    one.claim()
    one.write_state(state(1))
    other.claim()
    with pytest.raises(StateError):
        other.read_state()
    again = RayStore(store_name(Path("/state/one")))
    again.claim()
    assert one.id == again.id != other.id


def test_what_was_written_outlives_controllers_that_died_while_they_claimed(storage: None) -> None:
    first = RayStore("c")
    first.claim()
    first.write_state(state(5))
    for epoch in (2, 3):
        ray_kv._internal_kv_put(f"c/epoch/{epoch}", b"claimed", overwrite=False, namespace=b"shardline")
    for epoch in (4, 5, 6):
        later = RayStore("c")
        assert later.claim() == epoch
        assert later.read_state().generation == 5
