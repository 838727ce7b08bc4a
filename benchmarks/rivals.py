"""Installs what the benchmarks compare with, each by itself: one that cannot be installed stops no other.

`python -m benchmarks.rivals [REQUIREMENT …]`; without any, those of the extra `bench`. Exit code 1: one is missing.
"""

import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "install")
WITHIN_S = 1800


def requirements() -> list[str]:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return list(project["optional-dependencies"]["bench"])


def problem(requirement: str) -> str:
    """Installs it; why it could not be, or nothing."""
    try:
        done = subprocess.run([*PIP, requirement], stderr=subprocess.PIPE, text=True, check=False, timeout=WITHIN_S)
    except subprocess.TimeoutExpired:
        return f"pip took over {WITHIN_S} s"
    errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR: ")] or done.stderr.splitlines()
    return "; ".join(line.removeprefix("ERROR: ") for line in errors) or "pip failed" if done.returncode else ""


def main(asked: Sequence[str]) -> int:
    problems = {}
    for requirement in asked or requirements():
        if why := problem(requirement):
            problems[requirement] = why
        print(f"{requirement}: {f'not installed: {why}' if why else 'installed'}", flush=True)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
