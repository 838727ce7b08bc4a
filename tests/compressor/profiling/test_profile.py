"""Profiling a real artifact, small enough to take seconds."""

import json
import math
import shutil
from pathlib import Path

import pytest

from cluster.planning.costs import Costs
from compressor.profiling.profile import of_turns, profile_artifact
from compressor.profiling.stage_profile import Measured
from shardline.cli import main
from worker.errors import InvalidRequest, Unsupported
from worker.model_yaml import read_model_yaml
from worker.profile import read_profile


def test_of_several_turns_the_quickest_run_counts_and_the_most_memory() -> None:
    def turn(seconds: list[float], loaded: int, peak: int) -> Measured:
        return Measured("eager", 100, loaded, peak, {(1, 4): seconds})

    turns = [turn([0.010, 0.011], 5, 9), turn([0.030, 0.031], 6, 8), turn([0.012, 0.013], 4, 7)]
    one = of_turns(0, 3, 1, turns)
    (timed,) = one.seconds
    assert (timed.rows, timed.length) == (1, 4)
    assert timed.seconds == 0.010
    assert (one.loaded_bytes, one.peak_bytes) == (6, 9)


def test_a_profile_holds_every_stage_and_a_plan_follows_from_it(
    toy_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "toy" / "1"
    shutil.copytree(toy_folder, folder)
    with pytest.raises(InvalidRequest, match="rows and lengths"):
        profile_artifact(folder, rows=[0])
    with pytest.raises(InvalidRequest, match="turns: expected a whole number from 1, got 0"):
        profile_artifact(folder, turns=0)
    with pytest.raises(Unsupported):
        profile_artifact(folder, device="tpu")
    found = profile_artifact(folder, rows=[1, 2], lengths=[4, 8], thread_counts=[1], turns=1)
    assert read_profile(folder) == found
    costs = Costs(found)
    point = found.packaged[1][0]
    assert found.packaged == ((), (point,))
    device = found.devices["cpu"]
    assert [(stage.low, stage.high) for stage in device.stages] == [(0, costs.steps), (0, point), (point, costs.steps)]
    assert all(len(stage.seconds) == 4 for stage in device.stages)
    assert all(len(timed.seconds) == costs.steps for timed in device.steps)
    assert sum(weight.nbytes for weight in found.weights) == 4 * (4 * 64 + 4 * 8)
    assert costs.travels(0, 1, 8) == 2 * 8 * 8 * 4

    nodes = tmp_path / "nodes.yaml"
    nodes.write_text("nodes:\n  - {name: n, count: 2, cpus: 2, memory_gib: 4}\n")
    asked = ["plan", str(tmp_path / "toy"), "--rate", "50", "--p99", "200ms", "--nodes", str(nodes)]
    assert main([*asked, "--write", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["models"][0]["rate"] == pytest.approx(50, rel=0.3)
    written = read_model_yaml(tmp_path / "toy" / "model.yaml")
    planned = told["models"][0]["stages"]
    assert [written.stage(place).memory_mib for place in range(written.stages)] == [
        math.ceil(stage["memory_bytes"] / 2**20) for stage in planned
    ]
    assert all(stage["memory_bytes"] > 2**20 and stage["labels"] == {} for stage in planned)
    of_another_cut = "stages: 3\nplacement: {labels: [{}, {}, {}]}\n"
    (tmp_path / "toy" / "model.yaml").write_text(of_another_cut)
    assert main([*asked, "--write"]) == 1
    assert "placement: labels: expected " in capsys.readouterr().err
    assert (tmp_path / "toy" / "model.yaml").read_text() == of_another_cut
    assert main(asked) == 0
    assert "upper bound" in capsys.readouterr().out
    assert main(["plan", str(tmp_path / "toy"), "--rate", "50", "--p99", "1us"]) == 1
    assert "a request alone takes" in capsys.readouterr().err
    assert main(["plan", str(tmp_path / "toy")]) == 1
    assert "at what rate?" in capsys.readouterr().err
