"""Processes that compute the same stage at once, to see how much cores disturb each other."""

import os
import signal
from pathlib import Path

import psutil
import pytest

from compressor.profiling.stage_profile import Crowd, Request, slowed
from worker.errors import Internal
from worker.seal import DEFAULT_KEY


def test_processes_slow_each_other_down_by_the_mean_of_their_speeds() -> None:
    assert slowed([(0.010, (0.010, 0.030)), (0.012, (0.015, 0.015))]) == pytest.approx(1.5)
    assert slowed([(0.010, (0.009, 0.009))]) == 1.0, "nothing is quicker in company"


def test_processes_of_a_crowd_end_with_it_and_say_when_one_is_gone(toy_folder: Path) -> None:
    whole = Request(str(toy_folder), 0, 1, "cpu", 1, "eager", key=str(DEFAULT_KEY), sizes=((2, 8),))
    before = set(psutil.Process().children())
    with Crowd(whole, 2) as crowd:
        assert 0 < crowd.alone() < 1
        assert len(crowd.together()) == 2
        assert all(0 < seconds < 1 for seconds in crowd.together())
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
