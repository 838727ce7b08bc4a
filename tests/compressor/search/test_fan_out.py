import os
import tempfile
import time
from pathlib import Path

import pytest

from compressor.search.fan_out import Failed, Here, Job, RayTasks, ray_tasks
from worker.errors import Internal, InvalidRequest
from worker.local_ray import local_ray


def spell(folder: Path, name: str, wait_for: str, within_s: float = 100.0) -> str:
    """Leaves marks of when it began and ended; waits for so long, or until the mark `wait_for` is there."""
    (folder / f"{name}-began").touch()
    until = time.monotonic() + within_s
    while wait_for and not (folder / wait_for).exists() and time.monotonic() < until:
        time.sleep(0.01)
    met = not wait_for or (folder / wait_for).exists()
    (folder / f"{name}-ended").touch()
    return "met" if met else "alone"


def running(folder: Path) -> list[str]:
    """Who has begun and not ended."""
    began = {path.name.removesuffix("-began") for path in folder.glob("*-began")}
    return sorted(began - {path.name.removesuffix("-ended") for path in folder.glob("*-ended")})


def refuse(_: Path) -> None:
    raise InvalidRequest("not this one")


def break_down(_: Path) -> None:
    raise RuntimeError("a bug")


def die(_: Path) -> None:
    os._exit(1)


def test_trials_run_side_by_side_but_one_that_must_be_alone_is(tmp_path: Path) -> None:
    with ray_tasks(tmp_path, cpus=2) as tasks:
        until = time.monotonic() + 600
        # Each waits for the other to have begun: only side by side do both see it.
        jobs = {"a": (spell, ("a", "b-began")), "b": (spell, ("b", "a-began"))}
        assert dict(tasks.each(jobs, until)) == {"a": "met", "b": "met"}

        side = tasks.each({"c": (spell, ("c", "")), "d": (spell, ("d", "never", 1.5))}, until)
        next(side)
        assert tasks.alone((running, ())) == []
        assert len(list(side)) == 1

        assert list(tasks.each(jobs, time.monotonic())) == []
        with pytest.raises(InvalidRequest, match="not this one"):
            tasks.alone((refuse, ()))
        with pytest.raises(Internal, match="RuntimeError: a bug"):
            tasks.alone((break_down, ()))
        # What breaks down by itself, or dies, takes no other with it.
        mixed: dict[str, Job] = {"bug": (break_down, ()), "dies": (die, ()), "e": (spell, ("e", ""))}
        found = dict(tasks.each(mixed, until))
        assert found["bug"] == Failed("a trial failed: RuntimeError: a bug")
        assert "a trial's process ended" in found["dies"].why
        assert found["e"] == "met"


def test_more_trials_side_by_side_than_this_node_has_cpus_are_refused() -> None:
    scratch = Path(tempfile.mkdtemp(prefix="shardline-test-"))  # Ray's sockets need a short path
    with local_ray(scratch, cpus=1, object_store_bytes=2**27), pytest.raises(InvalidRequest) as refused:
        RayTasks(None, 2, "cpu")
    assert "has 1 CPUs for Ray, and 2 are asked for: give fewer --workers" in str(refused.value)


def test_here_one_follows_the_other_until_the_time_is_up(tmp_path: Path) -> None:
    here = Here(tmp_path)
    jobs = {"a": (spell, ("a", "")), "b": (spell, ("b", "a-ended"))}
    assert dict(here.each(jobs, time.monotonic() + 60)) == {"a": "met", "b": "met"}
    assert list(here.each(jobs, time.monotonic())) == []
    assert here.alone((running, ())) == []
    assert dict(here.each({"bug": (break_down, ())}, time.monotonic() + 60)) == {
        "bug": Failed("a trial failed: RuntimeError: a bug")
    }
    with pytest.raises(Internal, match="a trial failed: RuntimeError: a bug"):
        here.alone((break_down, ()))
