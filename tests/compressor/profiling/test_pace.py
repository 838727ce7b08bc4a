"""The pace by which what was measured on a machine of changing speed is told as of one speed."""

import itertools
from pathlib import Path

import pytest

from compressor.profiling.pace import Pace, pacemakers
from compressor.profiling.profile import at_pace
from compressor.profiling.stage_profile import Measured
from worker.seal import DEFAULT_KEY


def test_what_was_measured_at_half_the_speed_counts_half() -> None:
    turns = iter([(1.0, 1.0), (1.0, 1.0), (2.0, 2.0), (2.0, 2.0), (1.0, 1.5)])
    pace = Pace(lambda: next(turns))
    fast, slow = pace.around(lambda: 0.010), pace.around(lambda: 0.015)
    slower = pace.around(lambda: 0.020)
    assert (fast[1], slow[1], slower[1]) == (1.0, 1.5, 2.0)
    pace.take()
    assert pace.typical == 1.0
    assert pace.crowded == 1.0

    def told(seconds: float, then: float) -> float:
        measured = Measured("eager", 100, 5, 9, {(1, 4): [seconds]})
        return at_pace(measured, pace.typical / then).seconds[1, 4][0]

    assert [told(*one) for one in (fast, slow, slower)] == pytest.approx([0.010] * 3)


def test_without_a_run_the_pace_is_one() -> None:
    pace = Pace()
    assert pace.around(lambda: "measured") == ("measured", 1.0)
    assert (pace.typical, pace.crowded) == (1.0, 1.0)


def test_busy_cores_disturb_each_other_by_what_the_median_turn_says() -> None:
    turns = itertools.cycle([(1.0, 1.2), (2.0, 2.4), (1.0, 9.0)])
    pace = Pace(lambda: next(turns))
    for _ in range(9):
        pace.take()
    assert pace.crowded == pytest.approx(1.2)


def test_the_model_itself_tells_the_pace(toy_folder: Path) -> None:
    with pacemakers(toy_folder, rows=2, length=8, runtime="eager", key=DEFAULT_KEY) as crowd:
        alone, together = crowd.turn()
        assert 0 < alone < 1
        assert 0 < together < 1
