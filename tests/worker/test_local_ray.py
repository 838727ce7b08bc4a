import os
from pathlib import Path

import pytest

from worker.local_ray import RayNotStarted, local_ray, ray_environment


def test_a_ray_that_cannot_start_says_so_and_leaves_nothing_behind(tmp_path: Path) -> None:
    scratch = tmp_path / ("too-long-for-a-socket" * 6)
    scratch.mkdir()
    before = dict(os.environ)
    with (
        pytest.raises(RayNotStarted, match=r"Ray did not start on this machine: .*less busy"),
        local_ray(scratch, cpus=1, object_store_bytes=80 << 20),
    ):
        pytest.fail("it started")
    assert not scratch.exists()
    assert dict(os.environ) == before


def test_what_the_user_set_for_ray_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "mine")
    monkeypatch.delenv("RAY_ADDED", raising=False)
    with ray_environment({"RAY_AUTH_TOKEN": "other"}):
        assert os.environ["RAY_AUTH_TOKEN"] == "mine"
        os.environ["RAY_ADDED"] = "by Ray"
    assert "RAY_ADDED" not in os.environ
    assert os.environ["RAY_AUTH_TOKEN"] == "mine"
