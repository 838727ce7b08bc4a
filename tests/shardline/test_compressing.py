"""`shardline compress`, as a command."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from shardline import exits
from shardline.cli import main
from worker.artifact import load_artifact

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


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("steps: [{kind: int8_dinamic}]", 'the nearest is "int8_dynamic"'),
        ("steps: [{kind: int8_dynamic, layers: [qvk]}]", 'layers: "qvk" matches nothing; the nearest is "qkv"'),
        ("steps: [{kind: int8_static}]", "there is no calibration data"),
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


def test_ctrl_c_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    script = (  # a shell that starts something in the background has it ignore Ctrl-C, and children inherit that
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from shardline.cli import main; sys.exit(main(sys.argv[1:]))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, *_arguments(tmp_path, _recipe(tmp_path))],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if line.startswith("capturing the program"):
                break
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == exits.FORCED
    finally:
        process.kill()
        process.communicate()
    assert not (tmp_path / "m").exists()
