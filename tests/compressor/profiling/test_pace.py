"""The pace by which what was measured on a machine of changing speed is told as of one speed."""

import os
import signal
from pathlib import Path

import psutil
import pytest

from compressor.profiling.pace import Pace
from compressor.profiling.profile import at_pace
from compressor.profiling.stage_profile import Crowd, Measured, Request
from worker.errors import Internal
from worker.seal import DEFAULT_KEY


def test_what_was_measured_at_half_the_speed_counts_half() -> None:
    pace = Pace(iter([1.0, 1.0, 2.0, 2.0, 1.0]).__next__)
    found = [pace.around(lambda seconds=seconds: seconds) for seconds in (0.010, 0.015, 0.020)]  # type: ignore[misc]
    assert [then for _, then in found] == [1.0, 1.5, 2.0]
    assert pace.take() == pace.typical == 1.0

    def told(seconds: float, then: float) -> float:
        measured = Measured("eager", 100, 5, 9, {(1, 4): [seconds]})
        return at_pace(measured, pace.typical / then).seconds[1, 4][0]

    assert [told(*one) for one in found] == pytest.approx([0.010] * 3)


def test_without_a_run_the_pace_is_one() -> None:
    pace = Pace()
    assert pace.around(lambda: "measured") == ("measured", 1.0)
    assert pace.typical == 1.0


def test_processes_that_tell_the_pace_end_with_it_and_say_when_one_is_gone(toy_folder: Path) -> None:
    whole = Request(str(toy_folder), 0, 1, "cpu", 1, "eager", key=str(DEFAULT_KEY), sizes=((2, 8),))
    before = set(psutil.Process().children())
    with Crowd(whole, 2) as crowd:
        assert 0 < crowd.alone() < 1
        assert 0 < crowd.together() < 1
        started = set(psutil.Process().children()) - before
        assert len(started) == 2
        for child in started:
            os.kill(child.pid, signal.SIGKILL)
        psutil.wait_procs(started, timeout=30)
        with pytest.raises(Internal, match="a process that ran it has ended"):
            crowd.together()
    assert not [child for child in started if child.is_running()]


def test_a_stage_that_cannot_be_loaded_says_why(tmp_path: Path) -> None:
    whole = Request(str(tmp_path), 0, 1, "cpu", 1, "eager", key=str(DEFAULT_KEY), sizes=((2, 8),))
    with pytest.raises(Internal, match="manifest"), Crowd(whole, 1):
        pass
