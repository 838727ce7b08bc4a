"""Installs with pip itself, from a file and without the network, into a folder of the test's own."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

from benchmarks.rivals import requirements

INFO = "a_rival-1.0.dist-info"


def wheel(folder: Path) -> Path:
    path = folder / "a_rival-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a_rival.py", "")
        file.writestr(f"{INFO}/METADATA", "Metadata-Version: 2.1\nName: a-rival\nVersion: 1.0\n")
        file.writestr(f"{INFO}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{INFO}/RECORD", f"a_rival.py,,\n{INFO}/METADATA,,\n{INFO}/WHEEL,,\n{INFO}/RECORD,,\n")
    return path


def test_one_that_cannot_be_installed_is_told_and_stops_no_other(tmp_path: Path) -> None:
    there = wheel(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.rivals", "no-such-rival>=1", str(there)],
        env={**os.environ, "PIP_NO_INDEX": "1", "PIP_TARGET": str(tmp_path / "into")},
        cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    missing, installed = done.stdout.splitlines()
    assert missing.startswith("no-such-rival>=1: not installed: ")
    assert "no-such-rival" in missing.partition("not installed: ")[2]
    assert installed == f"{there}: installed"
    assert (tmp_path / "into" / "a_rival.py").exists()
    assert done.returncode == 1


def test_the_rivals_are_those_that_the_benchmarks_import() -> None:
    names = " ".join(requirements())
    assert all(name in names for name in ("ray[serve]", "onnxruntime", "onnx"))
