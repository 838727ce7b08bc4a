"""`shardline tune`, as a command."""

import inspect
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from compressor.model import Input, Model
from compressor.package import package
from compressor.profiling.measure import threads
from compressor.training.training_data import Rows
from shardline import exits
from shardline.cli import main
from tests.compressor.search.tiny import classifier, single, write_data
from worker.artifact import load_artifact, versions

ROOT = Path(__file__).parents[2]
HERE = "tests.shardline.test_tuning"
SOURCE = "tests.compressor.search.tiny:classifier"
SINGLE = "tests.compressor.search.tiny:single"
SMALL = "tests.compressor.search.tiny:small_classifier"
LEFT = {"1", "model.yaml", "report.html", "report.json"}
"""What a search that has ended leaves; besides, recipe.yaml where it found something."""
START = (  # a shell that starts something in the background has it ignore Ctrl-C, and children inherit that
    "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    "from shardline.cli import main; sys.exit(main(sys.argv[1:]))\n"
)


def not_a_number(run: Any, columns: dict[str, np.ndarray]) -> list[float]:
    return [float("nan")] * len(columns["x"])


def evaluation_that_fails(run: Any, columns: dict[str, np.ndarray]) -> list[float]:
    raise KeyError("no such column")


def source_that_may_not_read() -> Model:
    raise PermissionError(13, "weights")


def source_that_fails() -> Model:
    raise ValueError("no weights")


class Fails(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise KeyError("inside")


def model_that_fails() -> Model:
    return Model(nn.Sequential(Fails()), (Input("x", torch.zeros(3, 64), ("batch", None)),))


def rows_of_another_model() -> Rows:
    return Rows((torch.zeros(8, 3),), torch.zeros(8))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with threads(1):
        yield


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    data = write_data(tmp_path / "data.npz", classifier(), 1200, seed=1)
    treatments = tmp_path / "treatments.yaml"
    treatments.write_text("- {kind: prune_neurons, share: 0.5}\n- {kind: prune_neurons, share: 0.75}\n")
    options = {
        "--data": data,
        "--treatments": treatments,
        "--max-drop": "2",
        "--evaluate": "accuracy",
        "--objective": "latency@64",
        "--out": tmp_path / "models" / "tiny",
        "--runtime": "eager",
        "--workers": "0",
    }
    return ["tune", SOURCE, *(str(part) for pair in options.items() for part in pair)]


def changed(command: Sequence[str], **options: str | Path) -> list[str]:
    """The command with these options instead: of two, the last counts."""
    more = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    return [*command, *more]


@contextmanager
def started(command: Sequence[str], home: Path) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", START, *command],
        cwd=ROOT, env={**os.environ, "HOME": str(home), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "number"), [("0", signal.SIGINT), ("2", signal.SIGINT), ("2", signal.SIGTERM)])
def test_ctrl_c_or_sigterm_leaves_nothing_half_made_and_the_same_command_goes_on_to_what_can_be_replayed(
    workers: str, number: signal.Signals, command: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "models" / "tiny"
    asked = [*changed(command, workers=workers), "--json"]
    with started(asked, tmp_path) as first:
        assert first.stderr is not None
        told = ""
        for text in first.stderr:
            told += text
            if text.startswith("sensitivity"):
                first.send_signal(number)
                break
        told += first.stderr.read()
        assert first.wait(60) == exits.FORCED, told
    assert "the same command goes on from there" in told
    assert "Traceback" not in told
    assert versions(out) == ()
    kept = {path: path.stat().st_mtime_ns for path in (out / ".tune" / "trials").glob("*.json")}
    assert kept
    assert not list(out.rglob(".packaging-*"))
    assert not list(out.rglob(".writing-*"))
    assert not list(out.rglob("*.partial.pt2"))

    with started([*asked, "--keep"], tmp_path) as second:
        printed, told = second.communicate(timeout=240)
        assert second.returncode == exits.OK, told
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items()), "what was measured is not again"
    report = json.loads(printed)
    assert report["found"]
    assert report["drop"]["high"] <= report["allowed"] == 2
    assert report == json.loads((out / "report.json").read_text())
    assert "<svg" in (out / "report.html").read_text()
    assert {path.name for path in out.iterdir()} == {*LEFT, ".tune", "recipe.yaml"}

    made = load_artifact(Path(report["artifact"]))
    replayed = tmp_path / "again"
    recipe = ["--recipe", str(out / "recipe.yaml"), "--runtime", "eager", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "shardline.cli", "compress", SOURCE, "--out", str(replayed), *recipe],
        cwd=ROOT, timeout=120, check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == exits.OK, done.stderr
    again = load_artifact(Path(json.loads(done.stdout)["folder"]))
    assert again.manifest.files["program.pt2"] == made.manifest.files["program.pt2"]
    assert again.manifest.recipe.compression == made.manifest.recipe.compression is not None


def test_a_budget_that_nothing_keeps_gives_the_model_as_it_was_and_says_so(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "treatments.yaml").write_text("- {kind: binary}\n")
    out = tmp_path / "models" / "tiny"
    asked = changed(command, max_drop="0.5", objective="size")
    asked[1] = SINGLE
    data = write_data(tmp_path / "single.npz", single(), 1200, seed=1)
    assert main(changed(asked, data=data)) == exits.NOTHING_FOUND
    told = capsys.readouterr().out
    assert "the model stays as it was: nothing keeps the budget: the most careful mix" in told
    assert "0.5 is allowed" in told
    assert {path.name for path in out.iterdir()} == LEFT
    report = json.loads((out / "report.json").read_text())
    assert not report["found"]
    assert "stays as it was" in (out / "report.html").read_text()
    plain = package(SINGLE, tmp_path / "plain", runtime="eager", stages=(1,))
    files = load_artifact(Path(report["artifact"])).manifest.files
    assert files["program.pt2"] == load_artifact(plain).manifest.files["program.pt2"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"evaluate": "acuracy"}, 'the nearest is "accuracy"'),
        ({"evaluate": f"{HERE}:not_a_number"}, "values: nan in record 0"),
        ({"data": "nothing.csv"}, "cannot be read"),
        ({"max_drop": "half"}, "max-drop 'half': expected a number"),
        ({"objective": "latncy@8"}, 'the nearest is "latency"'),
        ({"objective": "latency@8x64"}, "'latency@8x64': the model has no axis beside the batch"),
        ({"device": "tpu"}, "expected cpu, cuda or cuda:N"),
        ({"treatments": "nothing.yaml"}, "cannot be read"),
        ({"evaluate": f"{HERE}:evaluation_that_fails"}, "evaluation_that_fails' failed: KeyError: 'no such column'"),
        ({"address": "127.0.0.1:1"}, "--address 127.0.0.1:1: trials run there on --workers; give their number"),
    ],
)
def test_what_is_wrong_is_told_and_leaves_no_version(
    options: dict[str, str], told: str, command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(changed(command, **options)) == exits.FAILED
    assert told in capsys.readouterr().err
    out = tmp_path / "models" / "tiny"
    assert not versions(out)
    assert {path.name for path in out.glob("*")} <= {".tune"}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("- {kind: prune_neuron, share: 0.5}", 'the nearest is "prune_neurons"'),
        ("- {kind: prune_neurons, shares: 0.5}", 'takes no such key; the nearest is "share"'),
        ("[]", "treatments"),
        ("- []", "0: expected a step or a list of steps, not []"),
        ("- 5", "0: expected a step or a list of steps, not 5"),
    ],
)
def test_a_treatment_that_is_unknown_is_told_with_the_nearest(
    text: str, told: str, command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "treatments.yaml").write_text(text)
    assert main(command) == exits.FAILED
    assert told in capsys.readouterr().err
    assert not (tmp_path / "models").exists()


def test_empty_and_mismatched_data_are_told(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, columns, told in (
        ("empty", {"x": np.zeros((0, 64), np.float32), "label": np.zeros(0, np.int64)}, "no records"),
        ("narrow", {"x": np.eye(63, dtype=np.float32), "label": np.zeros(63, np.int64)}, "column 'x' has [63]"),
        ("class", {"x": np.eye(64, dtype=np.float32), "label": np.full(64, 7)}, "7; the model has 5 classes"),
        ("unnamed", {"y": np.eye(64, dtype=np.float32), "label": np.zeros(64, np.int64)}, "the model's input 'x'"),
    ):
        path = tmp_path / f"{name}.npz"
        np.savez(path, **columns)
        assert main(changed(command, data=path, max_drop="20")) == exits.FAILED
        assert told in capsys.readouterr().err, name
    assert not versions(tmp_path / "models" / "tiny")


def test_a_model_that_cannot_be_exported_is_told_with_the_line_and_leaves_no_version(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command[1] = "tests.shardline.test_compressing:branches"
    assert main(command) == exits.FAILED
    assert "(return x + 1 if x.sum() > 0 else x - 1): a branch or a size depends on the data" in capsys.readouterr().err
    assert {path.name for path in (tmp_path / "models" / "tiny").iterdir()} == {".tune"}


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("source_that_fails", "source_that_fails' failed: ValueError: no weights"),
        ("source_that_may_not_read", "source_that_may_not_read' failed: PermissionError: [Errno 13] weights"),
        (
            "model_that_fails",
            'Sequential does not run on its examples: in 0 at test_tuning.py:{line} (raise KeyError("in',
        ),
    ],
)
def test_a_source_or_a_model_whose_code_fails_is_told(
    source: str, told: str, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    command[1] = f"{HERE}:{source}"
    assert main(command) == exits.FAILED
    assert told.format(line=inspect.getsourcelines(Fails.forward)[1] + 1) in capsys.readouterr().err


def test_training_data_that_are_not_the_models_and_an_out_that_is_a_file_are_told(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "treatments.yaml").write_text("- {kind: fine_tune}")
    assert main(changed(command, training=f"{HERE}:rows_of_another_model")) == exits.FAILED
    assert "the input 'x' is [8, 3]; expected ['batch', 64]" in capsys.readouterr().err
    (tmp_path / "treatments.yaml").write_text("- {kind: int8_dynamic}")
    assert main(changed(command, out=tmp_path / "treatments.yaml")) == exits.FAILED
    assert "Not a directory; check the path" in capsys.readouterr().err


def test_a_wrong_time_limit_is_a_usage_error(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*command, "--time-limit", "soon"])
    assert ended.value.code == exits.USAGE
    assert "such as 90s, 20m or 2h" in capsys.readouterr().err


def test_a_disk_without_room_is_told_and_the_same_command_goes_on_where_there_is_room(
    command: list[str], small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (small_disk.parent / "treatments.yaml").write_text("- {kind: prune_neurons, share: 0.5}\n")
    (small_disk / "other").write_bytes(bytes(850_000))
    out = small_disk / "tiny"
    asked = changed(command, out=out)
    asked[1] = SMALL
    assert main(asked) == exits.FAILED
    told = capsys.readouterr().err
    assert "cannot be written" in told
    assert "No space left on device" in told
    assert [path.name for path in out.iterdir()] == [".tune"]
    assert not list(out.rglob(".packaging-*"))
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True, timeout=10)  # noqa: S607
    assert main(asked) in {exits.OK, exits.NOTHING_FOUND}
    assert {path.name for path in out.iterdir()} >= LEFT
    assert versions(out) == (1,)
