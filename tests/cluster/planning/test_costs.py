"""What a profile says of stages that were measured, and of those that were not."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.planning.costs import Costs, Grid
from tests.cluster.planning.profiles import LENGTHS, MIB, ROWS, chain
from worker.errors import InvalidRequest
from worker.profile import Timed


@settings(deadline=None)
@given(st.integers(1, 32), st.integers(16, 128))
def test_a_grid_of_something_linear_is_exact_between_its_points(rows: int, length: int) -> None:
    grid = Grid.of([Timed(rows=r, length=n, seconds=1e-3 * r * n) for r in ROWS for n in LENGTHS])
    assert grid.at(rows, length) == pytest.approx(1e-3 * rows * length)


@settings(deadline=None)
@given(st.integers(32, 500), st.integers(128, 500))
def test_beyond_the_grid_time_grows_with_the_cells(rows: int, length: int) -> None:
    grid = Grid.of([Timed(rows=r, length=n, seconds=1e-3 * r * n) for r in ROWS for n in LENGTHS])
    assert grid.at(rows, length) == pytest.approx(1e-3 * rows * length)


def test_a_size_that_was_left_out_costs_as_much_a_cell_as_the_nearest_smaller_one() -> None:
    grid = Grid.of(
        [
            Timed(rows=1, length=16, seconds=1.0),
            Timed(rows=1, length=32, seconds=2.0),
            Timed(rows=4, length=16, seconds=3.0),
        ]
    )
    assert grid.at(4, 32) == pytest.approx(6.0)


def test_a_measured_stage_costs_what_was_measured() -> None:
    costs = Costs(chain([1.0, 2.0, 3.0], packaged=[(), (1,)], per_batch_ms=0.6))
    assert costs.seconds(0, 3, 4, 64, device="cpu") == pytest.approx(6e-3 * 4 + 0.6e-3)
    assert costs.is_measured(1, 3, "cpu")
    assert not costs.is_measured(0, 2, "cpu")


def test_an_unmeasured_stage_gains_as_much_as_the_measured_ones_around_it() -> None:
    whole = chain([1.0, 2.0, 3.0])
    device = whole.devices["cpu"]
    faster = [
        stage.model_copy(
            update={"seconds": tuple(t.model_copy(update={"seconds": t.seconds / 4}) for t in stage.seconds)}
        )
        for stage in device.stages
    ]
    compiled = whole.model_copy(update={"devices": {"cpu": device.model_copy(update={"stages": tuple(faster)})}})
    assert Costs(compiled).seconds(0, 2, 8, 16, device="cpu") == pytest.approx(3e-3 * 8 * 16 / 64 / 4)


@settings(deadline=None)
@given(st.lists(st.floats(0.1, 5), min_size=2, max_size=6), st.data())
def test_stages_of_a_cut_together_cost_the_whole(steps: list[float], data: st.DataObject) -> None:
    costs = Costs(chain(steps))
    point = data.draw(st.sampled_from(costs.edges[1:-1]))
    first = costs.seconds(0, point, 4, 32, device="cpu")
    second = costs.seconds(point, len(steps), 4, 32, device="cpu")
    assert first + second == pytest.approx(costs.seconds(0, len(steps), 4, 32, device="cpu"))


def test_a_weight_that_two_stages_use_counts_in_both() -> None:
    profile = chain([1.0, 1.0], weight_mib=1.0)
    shared = profile.weights[0].model_copy(update={"steps": (0, 1)})
    costs = Costs(profile.model_copy(update={"weights": (shared,)}))
    assert costs.weight_bytes(0, 1) == costs.weight_bytes(1, 2) == costs.weight_bytes(0, 2) == MIB


def test_memory_is_at_least_process_and_weights() -> None:
    costs = Costs(chain([1.0] * 4, weight_mib=10, process_mib=100))
    assert costs.memory(0, 4, 1, 16, device="cpu") >= 140 * MIB
    assert costs.memory(0, 2, 1, 16, device="cpu") < costs.memory(0, 4, 1, 16, device="cpu")


def test_many_places_for_cuts_become_a_few_of_equal_time() -> None:
    costs = Costs(chain([1.0] * 400))
    assert 20 <= len(costs.edges) <= 40
    assert costs.edges[0] == 0
    assert costs.edges[-1] == 400


def test_a_device_that_was_not_profiled_is_named() -> None:
    with pytest.raises(InvalidRequest, match=r"'tpu'.*only on cpu"):
        Costs(chain([1.0])).seconds(0, 1, 1, 16, device="tpu")
