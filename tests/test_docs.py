"""What docs/ says of the code is so."""

import argparse
import ast
import json
import re
from pathlib import Path

import pytest

from cluster.planning.machines import _Entry
from compressor.evaluation.evaluation import BUILT_IN
from shardline.tune_options import tune_command
from tests.chaos.load import RETRY
from tests.docs_tables import DOCS, TABLES, tables_in, written
from tests.test_house import ORDER, ROOT

WORDS = ("device", "gpu_device", "labels")
PAGES = sorted(DOCS.glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_its_tables_are_the_codes(page: Path) -> None:
    text = page.read_text()
    assert text == written(text), "`python -m tests.docs_tables` writes it anew"


def test_every_table_stands_somewhere_once() -> None:
    assert sorted(name for page in PAGES for name in tables_in(page.read_text())) == sorted(TABLES)


def test_every_key_of_a_node_is_there_with_its_default() -> None:
    rows = re.findall(r"^\| (`[^|]+`) \| ([^|]+) \|", (DOCS / "planning.md").read_text(), re.MULTILINE)
    told: dict[str, str] = {}
    for keys, defaults in rows:
        names, values = re.findall(r"`(\w+)`", keys), defaults.split(", ")
        told |= zip(names, values * len(names) if len(values) == 1 else values, strict=True)
    fields = _Entry.model_fields
    assert told == {
        key: "needed" if field.is_required() else f"{field.default:g}" if key not in WORDS else str(field.default)
        for key, field in fields.items()
    }


def tune_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    tune_command(lambda *_: parser)
    return parser


def test_the_help_of_tune_names_the_columns_that_each_evaluation_needs() -> None:
    told = next(one.help or "" for one in tune_parser()._actions if one.dest == "data")
    for name, kind in BUILT_IN.items():
        of_it = re.search(rf"{name}( takes)? ([^;]*)", told)
        assert of_it, name
        assert set(kind.names or ("input",)) <= set(re.findall(r"\w+", of_it[2])), name


def test_the_retry_that_clients_are_told_of_is_the_one_that_the_chaos_tests_use() -> None:
    (block,) = re.findall(r"```json\n(.*?)```", (DOCS / "operations.md").read_text(), re.DOTALL)
    assert json.loads(block) == RETRY


def test_structure_has_the_line_of_every_module_and_no_other() -> None:
    """The line is how the module's own first words begin. Tests speak for themselves; what helps them is listed."""
    told: dict[str, str] = {}
    there: dict[str, str] = {}
    folder = ""
    for line in (DOCS / "structure.md").read_text().splitlines():
        if heading := re.fullmatch(r"#+ (\S+/)", line):
            folder = heading[1]
        elif row := re.fullmatch(r"\| `([^`]+\.py)` \| (.*?)\.? \|", line):
            told[folder + row[1]] = row[2]
    for package in (*ORDER, "benchmarks", "tests"):
        for path in (ROOT / package).rglob("*.py"):
            itself_a_test = package == "tests" and path.name.startswith("test_")
            if not (itself_a_test or path.name == "__init__.py" or "_pb2" in path.name):
                words = " ".join((ast.get_docstring(ast.parse(path.read_text())) or "").split())
                there[str(path.relative_to(ROOT))] = words
    assert sorted(told) == sorted(there)
    assert not [name for name, words in there.items() if not words.startswith(told[name])]
