"""`shardline compress`, as a command."""

import inspect
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
import ray
import torch
from torch import nn

from compressor.model import Input, Model
from compressor.packaging.compile import compiler_problem
from compressor.profiling.measure import threads
from shardline import exits
from shardline.cli import main
from worker.artifact import load_artifact
from worker.shard import load_shard

ROOT = Path(__file__).parents[2]
RECIPE = "steps:\n- {kind: int8_dynamic, layers: [qkv, out]}\n- {kind: binary, layers: [embedding]}\n"


def _recipe(folder: Path, text: str = RECIPE) -> str:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return str(path)


def _arguments(tmp_path: Path, recipe: str) -> list[str]:
    return [
        "compress",
        "tests.models:attention",
        "--recipe",
        recipe,
        "--out",
        str(tmp_path / "m"),
        "--runtime",
        "eager",
    ]


def test_a_recipe_makes_an_artifact_and_says_what_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*_arguments(tmp_path, _recipe(tmp_path)), "--json"]) == exits.OK
    printed = capsys.readouterr()
    facts = json.loads(printed.out)
    assert [(step["kind"], step["layers"]) for step in facts["steps"]] == [("int8_dynamic", 2), ("binary", 1)]
    assert all(step["after"] < step["before"] for step in facts["steps"])
    assert "step 2 of 2: binary" in printed.err
    artifact = load_artifact(Path(facts["folder"]))
    assert artifact.manifest.recipe.compression is not None
    assert (tmp_path / "m" / "model.yaml").is_file()


def broken() -> None:
    raise KeyError("no such column")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("steps: [{kind: int8_dinamic}]", 'the nearest is "int8_dynamic"'),
        ("steps: [{kind: int8_dynamic, layers: [qvk]}]", 'layers: "qvk" matches nothing; the nearest is "qkv"'),
        ("steps: [{kind: int8_static}]", "there is no calibration data"),
        (
            "calibration: tests.shardline.test_compressing:broken\nsteps: [{kind: int8_static}]",
            "calibration 'tests.shardline.test_compressing:broken' failed: KeyError: 'no such column'",
        ),
        ("steps: [{kind: prune_channels, share: 0.5}]", "the model has no Conv2d"),
    ],
)
def test_a_recipe_that_cannot_work_is_told_and_leaves_nothing(
    text: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(_arguments(tmp_path, _recipe(tmp_path, text))) == exits.FAILED
    assert told in capsys.readouterr().err
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("room", [20_000, 70_000])
def test_a_full_disk_is_told_and_leaves_nothing(room: int, tmp_path: Path) -> None:
    """A limit on the size of files fails as a full disk does, in the middle of a write."""
    script = (
        "import resource, sys, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({room}, {room}))\n"
        "from shardline.cli import main; sys.exit(main(sys.argv[1:]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *_arguments(tmp_path, _recipe(tmp_path))],
        cwd=ROOT, timeout=120, check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == exits.FAILED, done.stderr
    assert "cannot be written: [Errno 27] File too large; nothing was left behind" in done.stderr
    assert not (tmp_path / "m").exists()


def _stopped(
    arguments: list[str],
    at: str,
    number: signal.Signals = signal.SIGINT,
    until: Callable[[], bool] = lambda: True,
    **environment: str,
) -> str:
    """What a command says that gets a signal when it has said `at`, and `until` is so; its children end with it."""
    script = (  # a shell that starts something in the background has it ignore Ctrl-C, and children inherit that
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from shardline.cli import main; sys.exit(main(sys.argv[1:]))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    told = ""
    try:
        for line in process.stderr:
            told += line
            if line.startswith(at):
                break
        while process.poll() is None and not until():
            time.sleep(0.1)
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(number)
        told += process.stderr.read()
        assert process.wait(60) == exits.FORCED, told
        assert not psutil.wait_procs(children, timeout=10)[1], told
    finally:
        process.kill()
        process.communicate()
    assert "Traceback" not in told
    return told


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_or_sigterm_in_the_middle_leaves_nothing(number: signal.Signals, tmp_path: Path) -> None:
    told = _stopped(_arguments(tmp_path, _recipe(tmp_path)), "capturing the program", number)
    assert told.endswith("shardline: stopped; no artifact was written\n")
    assert not (tmp_path / "m").exists()


def test_sigterm_ends_a_package_with_its_compiler(tmp_path: Path) -> None:
    if problem := compiler_problem():
        pytest.skip(problem)
    waits, begun, cache = tmp_path / "g++", tmp_path / "begun", str(tmp_path / "cache")
    waits.write_text(f'#!/bin/sh\n[ "$1" = --version ] && exec g++ --version\ntouch {begun}; sleep 600\n')
    waits.chmod(0o755)
    arguments = ["package", "tests.models:attention", "--out", str(tmp_path / "m"), "--stages", "1"]
    told = _stopped(
        arguments, "compiling stage 1", signal.SIGTERM, begun.exists, CXX=str(waits), TORCHINDUCTOR_CACHE_DIR=cache
    )
    assert told.endswith("shardline: stopped; no artifact was written\n")
    assert not (tmp_path / "m").exists()


def _rows(folder: Path) -> Path:
    """To train `tests.models:attention` on."""
    ids = torch.randint(1, 50, (64, 5), generator=torch.Generator().manual_seed(0)).numpy()
    path = folder / "rows.npz"
    np.savez(path, ids=ids, mask=np.ones_like(ids), label=np.arange(64) % 16)
    return path


@pytest.mark.slow
def test_a_training_that_ctrl_c_stopped_goes_on_to_the_very_same_bytes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = "steps:\n- {kind: prune_neurons, share: 0.5}\n- {kind: distill, epochs: 60}\n- {kind: int8_dynamic}\n"
    recipe = _recipe(tmp_path, f"training: {_rows(tmp_path)}\n{steps}")
    arguments = _arguments(tmp_path, recipe)
    told = _stopped(arguments, "epoch 3 of 60")
    assert "the same command goes on from there" in told
    assert [path.name for path in (tmp_path / "m").iterdir()] == [".training"]
    with threads(1):
        assert main([*arguments, "--json"]) == exits.OK
    printed = capsys.readouterr()
    assert "goes on after step" in printed.err
    assert {path.name for path in (tmp_path / "m").iterdir()} == {"1", "model.yaml"}
    stopped = load_artifact(Path(json.loads(printed.out)["folder"]))
    with threads(1):
        assert main(_arguments(tmp_path / "at-once", recipe)) == exits.OK
    at_once = load_artifact(tmp_path / "at-once" / "m" / "1")
    assert stopped.manifest.files["program.pt2"] == at_once.manifest.files["program.pt2"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_training_on_ray_workers_that_ctrl_c_or_sigterm_stopped_is_kept(
    number: signal.Signals, tmp_path: Path
) -> None:
    pytest.importorskip("pyarrow", reason='the extra "train" is not installed')
    steps = "steps:\n- {kind: prune_neurons, share: 0.5}\n- {kind: distill, epochs: 2000}\n"
    arguments = [*_arguments(tmp_path, _recipe(tmp_path, f"training: {_rows(tmp_path)}\n{steps}")), "--workers", "1"]
    kept = tmp_path / "m" / ".training"
    told = _stopped(arguments, "training on 1 workers", number, lambda: any(kept.rglob("*.pt")))
    assert "shardline: stopped; no artifact was written; what was trained stays in" in told
    assert [path.name for path in (tmp_path / "m").iterdir()] == [".training"]


@pytest.mark.slow
def test_a_training_on_ray_workers_that_fails_at_its_first_steps_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pyarrow", reason='the extra "train" is not installed')
    steps = "steps:\n- {kind: distill, rate: 1.0e+30, epochs: 10}\n"
    arguments = _arguments(tmp_path, _recipe(tmp_path, f"training: {_rows(tmp_path)}\n{steps}"))
    assert main([*arguments, "--workers", "1"]) == exits.FAILED
    assert "lower the rate (1e+30)" in capsys.readouterr().err
    assert not (tmp_path / "m").exists()


class Branches(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1 if x.sum() > 0 else x - 1


class Selects(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.layer(x)
        return y[x > 0]


def branches() -> Model:
    return Model(nn.Sequential(nn.Linear(64, 64), Branches()), (Input("x", torch.ones(2, 64), ("batch", None)),))


def selects() -> Model:
    return Model(Selects(), (Input("x", torch.ones(2, 64), ("batch", None)),))


@pytest.mark.parametrize(
    ("source", "told"),
    [
        (
            "branches",
            "operator aten.item.default of what aten.gt.Scalar gave in 1 at test_compressing.py:{branches} "
            "(return x + 1 if x.sum() > 0 else x - 1): a branch or a size",
        ),
        (
            "selects",
            "Selects cannot be captured: operator aten.index.Tensor at test_compressing.py:{selects} "
            "(return y[x > 0]): it gives a size that depends on the data",
        ),
    ],
)
def test_a_model_that_cannot_be_exported_is_told_with_operator_and_line_and_leaves_nothing(
    source: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = _arguments(tmp_path, _recipe(tmp_path, "steps: [{kind: int8_dynamic}]"))
    arguments[1] = f"tests.shardline.test_compressing:{source}"
    assert main(arguments) == exits.FAILED
    places = {}
    for name, module in (("branches", Branches), ("selects", Selects)):
        code, first = inspect.getsourcelines(module.forward)
        places[name] = first + len(code) - 1
    assert told.format(**places) in capsys.readouterr().err
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    ("steps", "told"),
    [
        ("{kind: int4_weight_only, layers: [out], group: 8}, {kind: low_rank, rank: 16, layers: [qkv]}", "too small"),
        ("{kind: low_rank, rank: 16, layers: [out]}", "it is too small"),
        ("{kind: share_weights, bits: 8, layers: [out]}", "it is too small for"),
        ("{kind: prune_neurons, share: 0.5, multiple: 64}", "they are too small; give a smaller multiple"),
        ("{kind: prune_weights, sparsity: 0.5, block: [16, 16], layers: [out]}", "it is too small"),
    ],
)
def test_a_layer_that_is_too_small_for_its_step_is_told_and_leaves_nothing(
    steps: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(_arguments(tmp_path, _recipe(tmp_path, f"steps: [{steps}]"))) == exits.FAILED
    assert told in capsys.readouterr().err
    assert not (tmp_path / "m").exists()


@pytest.mark.slow
def test_a_distillation_on_two_ray_workers_gives_what_one_process_gives(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason='the extra "train" is not installed')
    # The model's code stands only in the folder where the command is typed.
    (tmp_path / "mine.py").write_text(inspect.getsource(sys.modules["tests.models"]))
    recipe = _recipe(
        tmp_path,
        f"training: {_rows(tmp_path)}\nsteps:\n- {{kind: prune_neurons, share: 0.5}}\n- {{kind: distill, epochs: 4}}\n",
    )
    outputs = {}
    for workers in ("0", "2"):
        arguments = ["compress", "mine:attention", "--recipe", recipe, "--out", workers, "--runtime", "eager"]
        done = subprocess.run(
            [sys.executable, "-m", "shardline.cli", *arguments, "--workers", workers],
            cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=300, check=False, capture_output=True,
            text=True,
        )  # fmt: skip
        assert done.returncode == exits.OK, done.stderr
        assert ("training on 2 workers" in done.stderr) == (workers == "2")
        assert {path.name for path in (tmp_path / workers).iterdir()} == {"1", "model.yaml"}
        shard = load_shard(load_artifact(tmp_path / workers / "1"), stage=0, stages=1)
        ids = torch.randint(1, 50, (8, 5), generator=torch.Generator().manual_seed(1))
        (outputs[workers],) = shard.run([ids, torch.ones_like(ids)])
    assert torch.allclose(outputs["0"], outputs["2"], atol=1e-4)


def test_an_address_without_workers_and_a_cluster_that_is_not_there_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = _recipe(tmp_path, f"training: {_rows(tmp_path)}\nsteps: [{{kind: fine_tune}}]\n")
    assert main([*_arguments(tmp_path, recipe), "--address", "127.0.0.1:1"]) == exits.FAILED
    assert "trainings run there on --workers; give their number" in capsys.readouterr().err
    assert main([*_arguments(tmp_path, recipe), "--address", "127.0.0.1:1", "--workers", "2"]) == exits.FAILED
    assert "cannot join the Ray cluster at 127.0.0.1:1: [Errno 111] Connection refused" in capsys.readouterr().err


def test_workers_for_a_recipe_in_which_nothing_trains_are_refused_and_no_ray_is_started(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*_arguments(tmp_path, _recipe(tmp_path)), "--workers", "2"]) == exits.FAILED
    told = capsys.readouterr().err
    assert "--workers 2: no step of the recipe trains" in told
    assert "(prune_gradually, train_sparse, fine_tune, distill, distill_network)" in told
    assert not ray.is_initialized()
    assert not (tmp_path / "m").exists()


def test_a_label_that_is_no_class_is_told_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = dict(np.load(_rows(tmp_path)))
    np.savez(tmp_path / "rows.npz", **(rows | {"label": np.full(64, -1)}))
    recipe = _recipe(tmp_path, f"training: {tmp_path / 'rows.npz'}\nsteps: [{{kind: fine_tune}}]\n")
    assert main(_arguments(tmp_path, recipe)) == exits.FAILED
    assert "a label is from -1 to -1; the model gives 16 classes, from 0 on" in capsys.readouterr().err
    assert not (tmp_path / "m").exists()
