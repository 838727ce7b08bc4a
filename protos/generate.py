"""Writes the Python code of every `.proto` beside this file: `python -m protos.generate [--check]`."""

import argparse
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

FOLDER = Path(__file__).parent
PUBLIC_POOL = "_descriptor_pool.Default()"
OWN_POOL = "_own_pool"
POOL_IMPORT = "from protos.pool import POOL as _own_pool\n"
ANCHOR = "from google.protobuf import descriptor_pool as _descriptor_pool\n"


def with_own_pool(code: str) -> str:
    """Moves one generated `_pb2.py` from protobuf's default pool into `protos.pool`."""
    if PUBLIC_POOL not in code or ANCHOR not in code:
        raise RuntimeError("protoc's output no longer looks as expected: no default pool to replace")
    return code.replace(ANCHOR, POOL_IMPORT).replace(PUBLIC_POOL, OWN_POOL)


def generate(out: Path) -> list[Path]:
    """Generates into `out` (a folder that stands for the repository's root) and returns the files written."""
    sources = sorted(FOLDER.glob("*.proto"))
    arguments = [
        "protoc",
        f"-I{FOLDER.parent}",
        f"-I{files('grpc_tools') / '_proto'}",
        f"--python_out={out}",
        f"--pyi_out={out}",
        f"--grpc_python_out={out}",
        *(f"protos/{source.name}" for source in sources),
    ]
    if protoc.main(arguments) != 0:
        raise RuntimeError("protoc failed; its message is above")
    for path in (out / "protos").glob("*_pb2.py"):
        path.write_text(with_own_pool(path.read_text()))
    return sorted((out / "protos").glob("*_pb2*"))


def stale(repository: Path) -> list[str]:
    """Names of generated files that differ from what the `.proto` files say."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        fresh = {path.name: path.read_text() for path in generate(out)}
    return [
        name
        for name, text in fresh.items()
        if not (repository / "protos" / name).is_file() or (repository / "protos" / name).read_text() != text
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where a file is out of date")
    if parser.parse_args().check:
        out_of_date = stale(FOLDER.parent)
        if out_of_date:
            print(f"out of date: {', '.join(out_of_date)}; run `make protos`", file=sys.stderr)
        return 1 if out_of_date else 0
    for path in generate(FOLDER.parent):
        print(f"protos/{path.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
