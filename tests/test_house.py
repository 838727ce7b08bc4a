"""The structure that docs/structure.md promises, read from the code's own imports."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ORDER = ["protos", "worker", "compressor", "cluster", "gateway", "shardline"]
ROOMS = [
    *("profiling", "weights", "sources", "evaluation", "quantization", "pruning", "sparsity", "training", "packaging"),
    "search",
]
"""The compressor's, in the order in which they may import each other."""
BELOW_ROOMS = ["model", "step", "capture"]
"""The compressor's modules that every room may import; the search, its last one, may import all."""
MAY_IMPORT_RAY = (
    *("worker/actor.py", "worker/joined_ray.py", "worker/local_ray.py", "cluster/", "shardline/demo.py"),
    *("compressor/search/fan_out.py", "compressor/training/train_ray.py"),
)
TORCH_FREE = ["worker.link", "worker.stream_server", "worker.model_yaml", "gateway.server", "shardline.cli"]


def sources() -> Iterator[Path]:
    for package in ORDER:
        for path in sorted((ROOT / package).rglob("*.py")):
            if "_pb2" not in path.name:
                yield path


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module


@pytest.mark.parametrize("path", list(sources()), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    allowed = ORDER[: ORDER.index(package) + 1]
    for module in imported(path):
        top = module.partition(".")[0]
        assert top not in ORDER or top in allowed, f"{package} may not import {module}"
        assert top not in {"tests", "benchmarks"}, f"{module} is not part of the product"


@pytest.mark.parametrize("room", ROOMS)
def test_the_compressors_rooms_import_one_way(room: str) -> None:
    allowed = [*BELOW_ROOMS, *ROOMS[: ROOMS.index(room) + 1]]
    for path in sorted((ROOT / "compressor" / room).glob("*.py")):
        for module in imported(path):
            top, _, rest = module.partition(".")
            if top == "compressor" and room != "search":
                assert rest.partition(".")[0] in allowed, f"{path.relative_to(ROOT)} may not import {module}"


def test_every_folder_of_the_compressor_is_one_of_its_rooms() -> None:
    assert {path.parent.name for path in (ROOT / "compressor").glob("*/*.py")} == set(ROOMS)


def test_ray_is_imported_only_where_it_places_and_supervises() -> None:
    for path in sources():
        name = str(path.relative_to(ROOT))
        if not name.startswith(MAY_IMPORT_RAY):
            assert not any(module.partition(".")[0] == "ray" for module in imported(path)), name


@pytest.mark.parametrize("module", TORCH_FREE)
def test_what_only_carries_tensors_loads_neither_torch_nor_ray(module: str) -> None:
    code = f"import sys, {module}; print(sorted({{'torch', 'ray'}} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"


def test_no_other_distribution_owns_our_names() -> None:
    owners = packages_distributions()
    for package in ORDER:
        assert set(owners.get(package, [])) <= {"shardline"}, f"{package} is also installed by {owners[package]}"


def test_no_file_has_grown_past_a_comfortable_read() -> None:
    for path in sources():
        assert len(path.read_text().splitlines()) <= 500, path
