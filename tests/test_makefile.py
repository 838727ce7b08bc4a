"""What `make` says before it installs anything."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_a_python_that_does_not_fit_is_told_before_anything_is_made(tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    done = subprocess.run(
        ["make", "protos", f"VENV={venv}", "PYTHON=false"],  # noqa: S607
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert "Shardline needs Python 3.11 or 3.12; false is" in done.stderr
    assert "Try: make PYTHON=python3.12 protos" in done.stderr
    assert not venv.exists()


def test_an_environment_of_such_a_python_is_told_too(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to("/bin/false")
    done = subprocess.run(
        ["make", "protos", f"VENV={tmp_path}"],  # noqa: S607
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert f"Shardline needs Python 3.11 or 3.12; {tmp_path} is of" in done.stderr
    assert "Remove it, then: make PYTHON=python3.12 protos" in done.stderr
