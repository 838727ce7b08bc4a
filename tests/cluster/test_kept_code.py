import os
import shutil
import time
from pathlib import Path

import pytest
from grpc import aio

from cluster.control_server import ControlServer
from cluster.controller import Controller
from cluster.kept_code import FORGET_AFTER_S, KeptCode
from cluster.messages import read_rollout
from cluster.repository import read_model
from cluster.simulated_fleet import SimulatedFleet
from cluster.state import HistoryEntry, ServedModel, State, StateDir
from cluster.store import FileStore
from protos import control_pb2, control_pb2_grpc
from tests.cluster.simulation import TOKEN
from worker.errors import InvalidRequest, ShardlineError


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


async def test_a_roll_back_to_code_that_is_no_more_is_refused_at_once(tmp_path: Path) -> None:
    kept = KeptCode(tmp_path / "kept", tmp_path / "models")
    first = served(tmp_path, "one = 1")
    kept.keep("a", first)
    second = served(tmp_path, "one = 2").model_copy(update={"revision": 2})
    store = FileStore(StateDir(tmp_path / "state"))
    state = a_state(second, first)
    controller = Controller(SimulatedFleet(), store, state, epoch=store.claim())
    server = ControlServer(controller, TOKEN, kept)
    port = await server.start("127.0.0.1", 0)
    shutil.rmtree(kept.place(first.code))
    try:
        async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = control_pb2_grpc.ControllerStub(channel)  # type: ignore[no-untyped-call]
            ask = control_pb2.RollbackRequest(model="a", revision=1)
            with pytest.raises(aio.AioRpcError, match="code is no longer as it was when it was taken"):
                await stub.Rollback(ask, metadata=(("authorization", f"Bearer {TOKEN}"),))
            assert controller.state.rollouts == {}
            served(tmp_path, "one = 1")
            assert (await stub.Rollback(ask, metadata=(("authorization", f"Bearer {TOKEN}"),))).revision == 3
    finally:
        await server.close(0)


@pytest.mark.parametrize("name", ["", "..", "../models/a", "/etc", "a/1", ".a"])
def test_a_roll_out_of_what_cannot_be_a_model_is_refused(tmp_path: Path, name: str) -> None:
    message = served(tmp_path, "one = 1").model_dump_json()
    given = control_pb2.RolloutRequest(served=message, canary_percent=100, within_s=600)
    with pytest.raises(InvalidRequest, match=r"^model: expected a name of letters, digits"):
        read_rollout(control_pb2.RolloutRequest(model=name, served=message))
    given.model = "a"
    assert read_rollout(given).target.config.handler_code == "code"
