"""A controller that is frozen in the middle of a step while another one takes over."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from cluster.controller import Controller
from cluster.fleet import Bundle, Sighting
from cluster.simulated_fleet import SimulatedFleet
from cluster.state import ServedModel, StateDir
from cluster.store import FileStore, Superseded
from cluster.world import Stage
from tests.cluster.test_controller import a_state, is_ready, ready, settle


class Freezing(SimulatedFleet):
    """Another controller takes over while this one's call of `at` is frozen, the first of them that is `armed`."""

    def __init__(self, tmp_path: Path, at: str) -> None:
        super().__init__()
        self._at, self._other = at, FileStore(StateDir(tmp_path / "state"))
        self.armed = True

    def _freeze(self, at: str) -> None:
        if self.armed and at == self._at:
            self.armed = False
            self._other.claim()

    async def observe(self) -> Sighting:
        self._freeze("observe")
        return await super().observe()

    async def start(self, stage: Stage, served: ServedModel | None = None) -> str:
        self._freeze("start")
        return await super().start(stage, served)

    async def stop(self, replica: str) -> None:
        self._freeze("stop")
        await super().stop(replica)

    async def ask_for(self, bundles: Sequence[Bundle]) -> None:
        self.calls.append(("ask for", str(len(bundles))))
        await super().ask_for(bundles)


async def test_a_controller_that_was_superseded_while_it_looked_does_nothing_in_that_step(tmp_path: Path) -> None:
    folder, state = a_state(tmp_path)
    fleet = Freezing(tmp_path, "observe")
    with pytest.raises(Superseded):
        await Controller(fleet, folder, state).step()
    assert not fleet.calls


async def test_what_a_controller_starts_while_it_is_superseded_it_takes_back_and_starts_no_more(tmp_path: Path) -> None:
    folder, state = a_state(tmp_path)
    fleet = Freezing(tmp_path, "start")
    with pytest.raises(Superseded):
        await Controller(fleet, folder, state).step()
    assert [what for what, _ in fleet.calls if what != "ask for"] == ["start", "stop"]
    assert not fleet.replicas


async def test_a_controller_that_was_superseded_while_it_stopped_one_replica_stops_no_other(tmp_path: Path) -> None:
    folder, state = a_state(tmp_path)
    fleet = Freezing(tmp_path, "stop")
    fleet.armed = False
    controller = Controller(fleet, folder, state)
    await settle(controller, lambda: is_ready(controller) and ready(fleet) == 4)
    for replica in list(fleet.replicas):
        fleet.kill(replica)
    fleet.calls.clear()
    fleet.armed = True
    with pytest.raises(Superseded):
        await settle(controller, lambda: False)
    assert [what for what, _ in fleet.calls].count("stop") == 1
    assert len(fleet.replicas) == 3
