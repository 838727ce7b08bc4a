import pytest

from cluster.meters import Meters
from cluster.world import Stage
from worker.nouns import WorkerStats

STAGE = Stage("minilm", 1, 0)


def look(meters: Meters, now: float, **workers: tuple[float, int]) -> None:
    """Each worker by its seconds of computing and its rows."""
    figures = {name: WorkerStats(computing_s=seconds, computed_rows=rows) for name, (seconds, rows) in workers.items()}
    meters.look([(name, STAGE) for name in workers], figures, now)


def test_busy_is_how_many_replicas_computed_all_the_time() -> None:
    meters = Meters(2.0)
    look(meters, 0.0, a=(50.0, 1000), b=(0.0, 0))
    look(meters, 1.0, a=(51.0, 1100), b=(0.5, 50))
    assert meters.busy(STAGE) == pytest.approx(1.5)
    assert meters.rows_per_s(STAGE) == pytest.approx(150)
    assert meters.seconds_per_row(STAGE) == pytest.approx(0.01)


def test_workers_that_come_go_or_begin_anew_count_from_there() -> None:
    meters = Meters(10.0)
    look(meters, 0.0, a=(50.0, 1000))
    look(meters, 1.0, b=(70.0, 9000))
    look(meters, 2.0, b=(1.0, 10))
    assert meters.busy(STAGE) == 0
    look(meters, 3.0, b=(1.9, 100))
    assert meters.busy(STAGE) == pytest.approx(0.3)


def test_a_row_costs_what_it_last_cost_also_when_nothing_is_computed() -> None:
    meters = Meters(2.0)
    assert meters.seconds_per_row(STAGE) == 0
    look(meters, 0.0, a=(0.0, 0))
    look(meters, 1.0, a=(1.0, 50))
    look(meters, 9.0)
    look(meters, 10.0, a=(1.0, 50))
    assert meters.busy(STAGE) == 0
    assert meters.seconds_per_row(STAGE) == pytest.approx(0.02)


def test_a_clock_that_jumps_back_starts_anew() -> None:
    meters = Meters(2.0)
    look(meters, 100.0, a=(0.0, 0))
    look(meters, 101.0, a=(1.0, 10))
    look(meters, 5.0, a=(1.5, 15))
    look(meters, 6.0, a=(2.0, 20))
    assert 0 < meters.busy(STAGE) <= 1
