"""The Containerfile, read for what must be in the image and who runs in it."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
LINES = (ROOT / "deploy" / "Containerfile").read_text().splitlines()


def test_it_runs_as_nobody_special_and_is_built_from_pinned_images() -> None:
    bases = [line.split()[1] for line in LINES if line.startswith("FROM ")]
    assert len(bases) == 2
    assert all(":" in base and not base.endswith(":latest") for base in bases)
    assert [line for line in LINES if line.startswith("USER ")] == ["USER 10001:10001"]


def test_it_gets_every_package_and_nothing_else_of_the_repository() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    needed = {*packages, "pyproject.toml", project["project"]["readme"]}
    copied = [line.split()[1:-1] for line in LINES if line.startswith("COPY ") and "--from" not in line]
    assert {name for names in copied for name in names} == needed
    sent = (ROOT / "deploy" / "Containerfile.dockerignore").read_text().splitlines()
    assert {line[1:] for line in sent if line.startswith("!")} == needed
    assert all((ROOT / name).exists() for name in needed)
