import errno
import importlib.util
import os
import py_compile
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Never

import pytest

from worker.errors import ShardlineError, Unsupported
from worker.fetch import local_code
from worker.handler_code import (
    MAX_BYTES,
    MAX_FILE_BYTES,
    MAX_FILES,
    HandlerCodeError,
    code_hash,
    importable,
    keep_code,
    kept_code,
)

NAME = "a_handler_of_these_tests"
HANDLER = f"{NAME}:X"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """models/a, with `NAME` and a folder of data in its code."""
    code = tmp_path / "a" / "code"
    (code / "words").mkdir(parents=True)
    (code / f"{NAME}.py").write_text("VALUE = 1\n")
    (code / "words" / "list.txt").write_text("some")
    return tmp_path / "a"


def test_the_hash_follows_names_and_contents_and_nothing_else(model: Path) -> None:
    first = code_hash(model, "code")
    (model / "code" / "__pycache__").mkdir()
    (model / "code" / "__pycache__" / "x.pyc").write_bytes(b"x")
    (model / "code" / f".{NAME}.py.swp").write_bytes(b"x")
    (model / "code" / ".git").mkdir()
    (model / "code" / ".git" / "x").write_bytes(b"x")
    assert code_hash(model, "code") == first
    words = model / "code" / "words"
    (words / "list.txt").rename(words / "other.txt")
    second = code_hash(model, "code")
    (words / "other.txt").write_text("same")
    assert len({first, second, code_hash(model, "code")}) == 3


def test_a_copy_is_whole_or_is_not_and_a_damaged_one_is_made_again(model: Path, tmp_path: Path) -> None:
    sha256, kept = code_hash(model, "code"), tmp_path / "kept"
    keep_code(model, "code", sha256, kept)
    code = kept_code(kept / sha256)
    assert (code / "words" / "list.txt").read_text() == "some"
    (code / "words" / "list.txt").write_text("damaged")
    with pytest.raises(HandlerCodeError, match="its files are not what its manifest says"):
        kept_code(kept / sha256)
    keep_code(model, "code", sha256, kept)
    assert (kept_code(kept / sha256) / "words" / "list.txt").read_text() == "some"
    (model / "code" / "words" / "list.txt").write_text("changed")
    (code / "words" / "list.txt").unlink()
    with pytest.raises(HandlerCodeError, match=r"no longer as it was .* `shardline rollout a` takes it"):
        keep_code(model, "code", sha256, kept)
    assert [one.name for one in kept.iterdir()] == [sha256], "nothing half made is left"


def test_a_copy_that_another_controller_makes_meanwhile_will_do(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sha256, kept = code_hash(model, "code"), tmp_path / "kept"
    made: Callable[..., str] = tempfile.mkdtemp

    def and_another_is_faster(**given: Any) -> str:
        monkeypatch.setattr(tempfile, "mkdtemp", made)
        keep_code(model, "code", sha256, kept)
        return made(**given)

    monkeypatch.setattr(tempfile, "mkdtemp", and_another_is_faster)
    keep_code(model, "code", sha256, kept)
    assert [one.name for one in kept.iterdir()] == [sha256]
    kept_code(kept / sha256)


def test_where_files_cannot_be_read_it_is_they_that_are_named_and_the_copy_stays(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(file: BinaryIO, _: str) -> Never:
        raise OSError(errno.EIO, os.strerror(errno.EIO), file.name)

    sha256, kept = code_hash(model, "code"), tmp_path / "kept"
    keep_code(model, "code", sha256, kept)
    with monkeypatch.context() as failing:
        failing.setattr("hashlib.file_digest", fails)
        with pytest.raises(
            HandlerCodeError, match=f"^handler_code: {model}/code/.*: cannot be read: Input/output error"
        ):
            keep_code(model, "code", sha256, kept)
    kept_code(kept / sha256)


@pytest.mark.parametrize(
    "manifest", ["", "[]", '{"files": 3}', '{"files": {"code/../../x": "0"}}', '{"files": {"/etc/passwd": "0"}}', "{}"]
)
def test_a_copys_manifest_names_files_inside_of_it(manifest: str, tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "manifest.json").write_text(manifest)
    with pytest.raises(HandlerCodeError, match=r"manifest\.json: "):
        kept_code(tmp_path)


def too_many(code: Path) -> None:
    for number in range(MAX_FILES):
        (code / f"{number}.txt").touch()


def a_large_file(code: Path, name: str = "large.txt", size: int = MAX_FILE_BYTES + 1) -> None:
    with (code / name).open("wb") as file:
        file.truncate(size)


def too_much(code: Path) -> None:
    for number in range(MAX_BYTES // MAX_FILE_BYTES):
        a_large_file(code, f"{number}.txt", MAX_FILE_BYTES)


def a_link_in_the_place_of(code: Path) -> None:
    code.rename(code.with_name("elsewhere"))
    code.symlink_to("elsewhere")


def a_folder_with_a_name_that_cannot_be_told(code: Path) -> None:
    inner = Path(os.fsdecode(os.fsencode(code) + b"/\xff"))
    inner.mkdir()
    (inner / "list.txt").touch()


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda code: code.rename(code.with_name("other")), "expected the folder .*/a/code .* got nothing; put the"),
        (a_link_in_the_place_of, "expected a folder inside of .*/a, got the link .*/a/code; copy it"),
        (lambda code: (code / "passwd").symlink_to("/etc/passwd"), "passwd: expected a plain file, got a link; put"),
        (lambda code: (code / "etc").symlink_to("/etc"), "etc: expected a plain file, got a link; put a copy"),
        (lambda code: (code / "x.so").touch(), r"x\.so: expected \.py and data files, got compiled code; install"),
        (lambda code: (code / "x\ny.py").touch(), "expected a printable name; rename it"),
        (a_folder_with_a_name_that_cannot_be_told, r"/a/code/\\udcff'.*: expected a printable name; rename it"),
        (a_large_file, rf"large\.txt: expected up to {MAX_FILE_BYTES} bytes, got {MAX_FILE_BYTES + 1}; what is large"),
        (too_much, f"/a/code: expected up to {MAX_BYTES} bytes, got more; what is large belongs into the artifact"),
        (too_many, f"/a/code: expected up to {MAX_FILES} files, got more"),
    ],
)
def test_a_folder_that_cannot_be_code_is_refused(model: Path, spoil: Callable[[Path], None], told: str) -> None:
    spoil(model / "code")
    with pytest.raises(HandlerCodeError, match=f"^handler_code: .*{told}"):
        code_hash(model, "code")


@pytest.mark.parametrize("name", ["../b", "/etc", ".", "code/../../b"])
def test_code_outside_of_the_models_folder_is_refused(model: Path, name: str) -> None:
    (model.parent / "b").mkdir()
    with pytest.raises(HandlerCodeError, match=r"expected a folder inside of .*/a, got .*; move it there"):
        code_hash(model, name)


def test_modules_are_imported_from_there_meanwhile_and_each_model_has_its_own(model: Path) -> None:
    code = model / "code"
    with importable(code, HANDLER):
        assert importlib.import_module(NAME).VALUE == 1
    assert NAME not in sys.modules
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module(NAME)
    other = model.with_name("b") / "code"
    other.mkdir(parents=True)
    (other / f"{NAME}.py").write_text("VALUE = 2\n")
    with importable(other, HANDLER):
        assert importlib.import_module(NAME).VALUE == 2


def test_the_source_counts_and_not_what_was_compiled_beside_it(model: Path) -> None:
    source = model / "code" / f"{NAME}.py"
    changed = source.stat().st_mtime_ns
    compiled = Path(importlib.util.cache_from_source(str(source)))
    py_compile.compile(str(source), str(compiled))
    source.write_text("VALUE = 2\n")
    os.utime(source, ns=(changed, changed))  # as large and as old: Python takes the old one
    before = compiled.read_bytes()
    with importable(model / "code", HANDLER):
        assert importlib.import_module(NAME).VALUE == 2
    assert compiled.read_bytes() == before


def test_a_module_that_is_not_there_is_refused(model: Path) -> None:
    told = rf"handler 'somewhere\.else:X': expected its module somewhere\.else in .*/code, got {NAME}; put it there"
    with pytest.raises(Unsupported, match=told), importable(model / "code", "somewhere.else:X"):
        pass


@pytest.mark.parametrize("name", ["__init__", "__main__"])
def test_a_module_with_a_name_that_python_gives_to_others_is_refused(model: Path, name: str) -> None:
    (model / "code" / f"{name}.py").write_text("class X: ...")
    told = rf"handler '{name}:X': expected its module {name} in .*/code, got {NAME}; put it there"
    with pytest.raises(Unsupported, match=told), importable(model / "code", f"{name}:X"):
        pass


@pytest.mark.parametrize("name", ["torch", "numpy", "json", "sys", "worker"])
def test_a_module_that_shadows_another_one_is_refused(model: Path, name: str) -> None:
    (model / "code" / f"{name}.py").touch()
    paths = list(sys.path)
    told = rf"handler_code: .*: expected modules with names of their own, got {name}, which is also .*; rename it"
    with pytest.raises(Unsupported, match=told), importable(model / "code", HANDLER):
        pass
    assert sys.path == paths


def test_without_a_hash_the_code_is_what_is_there(model: Path) -> None:
    assert local_code(model, "code", None, "token").folder == model / "code"
    with pytest.raises(ShardlineError, match="got nothing"):
        local_code(model, "none", None, "token")
