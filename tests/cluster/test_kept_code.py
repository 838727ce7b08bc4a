import os
import shutil
import time
from pathlib import Path

import pytest

from cluster.kept_code import FORGET_AFTER_S, KeptCode
from cluster.repository import read_model
from cluster.state import HistoryEntry, ServedModel, State
from tests.cluster.simulation import TOKEN
from worker.errors import ShardlineError


def served(folder: Path, text: str) -> ServedModel:
    """models/a with that code."""
    code = folder / "models" / "a" / "code"
    code.mkdir(parents=True, exist_ok=True)
    (code.parent / "1").mkdir(exist_ok=True)
    (code.parent / "model.yaml").write_text("{handler: 'words:Words', handler_code: code}")
    (code / "words.py").write_text(text)
    return read_model(code.parent)


def a_state(now: ServedModel, *before: ServedModel) -> State:
    history = tuple(HistoryEntry(unix_s=0, model="a", what="served", why="", served=one) for one in before)
    return State(repository="/models", host=None, token=TOKEN, models={"a": now}, history=history)


def long_ago(copy: Path) -> None:
    then = time.time() - FORGET_AFTER_S - 1
    os.utime(copy, (then, then))


def test_copies_stay_while_they_serve_or_may_serve_again_and_for_a_while_after(tmp_path: Path) -> None:
    kept = KeptCode(tmp_path / "kept", tmp_path / "models")
    first = served(tmp_path, "one = 1")
    kept.keep("a", first)
    second = served(tmp_path, "one = 2")
    kept.keep("a", second)
    (tmp_path / "kept" / ".cut-off").mkdir()
    for one in (tmp_path / "kept").iterdir():
        long_ago(one)
    kept.forget_others(a_state(second, first))
    assert {one.name for one in (tmp_path / "kept").iterdir()} == {first.code, second.code}
    kept.keep("a", first)
    kept.forget_others(a_state(second))
    assert kept.place(first.code).is_dir(), "by whoever asked for it just now it may be about to serve"
    long_ago(kept.place(first.code))
    kept.forget_others(a_state(second))
    assert [one.name for one in (tmp_path / "kept").iterdir()] == [second.code]


def test_what_cannot_be_kept_or_forgotten_keeps_no_controller_from_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_: Path) -> None:
        raise PermissionError("not yours")

    kept = KeptCode(tmp_path / "kept", tmp_path / "models")
    state = a_state(served(tmp_path, "one = 1"))
    served(tmp_path, "one = 2")
    kept.keep_all(state)
    with pytest.raises(ShardlineError, match="no longer as it was when it was taken"):
        kept.keep("a", state.models["a"])
    shutil.rmtree(tmp_path / "models")
    kept.keep_all(state)
    monkeypatch.setattr(Path, "iterdir", fails)
    kept.forget_others(state)
