from dataclasses import asdict

import pytest

from cluster.planning.road import DEFAULT_ROAD, MEASURED_WITH_S, road_on
from tests.cluster.planning.profiles import chain
from worker.profile import Profile


def profiled(road_s: float | None) -> Profile:
    found = chain([1.0])
    devices = {name: device.model_copy(update={"road_s": road_s}) for name, device in found.devices.items()}
    return found.model_copy(update={"devices": devices})


def test_the_road_is_as_long_as_on_the_slowest_machine_that_was_profiled() -> None:
    road = road_on([profiled(2 * MEASURED_WITH_S), profiled(3 * MEASURED_WITH_S), profiled(None)], {"cpu"})
    for name, seconds in asdict(road).items():
        assert seconds == pytest.approx(3 * getattr(DEFAULT_ROAD, name))


def test_where_no_road_was_measured_it_is_the_one_that_is_known() -> None:
    assert road_on([profiled(None)], {"cpu"}) == DEFAULT_ROAD


def test_machines_that_no_node_is_one_of_do_not_matter() -> None:
    assert road_on([profiled(5 * MEASURED_WITH_S)], {"another"}) == DEFAULT_ROAD
