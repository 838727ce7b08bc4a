import json
import os
import stat
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from cluster.state import Control, HistoryEntry, ServedModel, State, StateDir, StateError
from cluster.world import Stage
from worker.errors import InvalidRequest, NotFound
from worker.model_yaml import ModelYaml
from worker.nouns import Axis, Signature, TensorSpec

TOKEN = "0123456789abcdef"
SIGNATURE = Signature(
    (TensorSpec("input", "FP32", ("batch", 3), 0.0),),
    (TensorSpec("output", "FP32", ("batch", "4*width")),),
    (Axis("batch"),),
)


def state() -> State:
    served = ServedModel(config=ModelYaml(stages=2, replicas=(2, 1)), replicas={1: (2, 1), 3: (2, 1)})
    return State(
        repository="/models",
        host="127.0.0.1",
        token=TOKEN,
        models={"minilm": served.model_copy(update={"signatures": {1: SIGNATURE, 3: SIGNATURE}})},
    )


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    folder = StateDir(tmp_path / "state")
    folder.write_state(state())
    assert folder.read_state() == state()
    folder.write_control(Control(address="127.0.0.1:1234", token=TOKEN))
    assert json.loads(folder.control_file.read_text()) == {"address": "127.0.0.1:1234", "token": TOKEN}
    assert folder.read_control().address == "127.0.0.1:1234"


def test_only_the_owner_may_read_the_token(tmp_path: Path) -> None:
    folder = StateDir(tmp_path / "state")
    folder.write_state(state())
    folder.write_control(Control(address="127.0.0.1:1234", token=TOKEN))
    for path in (folder.state_file, folder.control_file):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.folder.stat().st_mode) == 0o700
    assert TOKEN not in repr(state())


def test_a_write_that_fails_leaves_the_old_state(tmp_path: Path) -> None:
    folder = StateDir(tmp_path / "state")
    folder.write_state(state())
    before = folder.state_file.read_text()
    (folder.folder / f".state.json.{os.getpid()}.tmp").mkdir()
    with pytest.raises(StateError, match=r"state\.json: cannot be written: Is a directory; "):
        folder.write_state(state().model_copy(update={"generation": 9}))
    assert folder.state_file.read_text() == before


def test_a_full_disk_is_told_with_how_to_go_on_and_the_old_state_stays(small_disk: Path) -> None:
    folder = StateDir(small_disk / "state")
    folder.write_state(state())
    rest = small_disk / "rest"
    with suppress(OSError), rest.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    with pytest.raises(StateError, match=r"state\.json: cannot be written: No space left on device; free some space"):
        folder.write_state(state().model_copy(update={"generation": 9}))
    assert folder.read_state() == state()
    rest.unlink()
    folder.write_state(state().model_copy(update={"generation": 9}))
    assert folder.read_state().generation == 9


def test_a_folder_that_may_not_be_written_is_told_with_how_to_go_on(tmp_path: Path) -> None:
    """As somebody without root's rights, in a process of its own."""
    tmp_path.chmod(0o755)
    (tmp_path / "closed").mkdir(mode=0o555)
    code = (
        "import os, sys; from pathlib import Path\n"
        "from cluster.state import StateDir, StateError\n"
        "if os.geteuid() == 0: os.setgid(65534); os.setuid(65534)\n"
        "try: StateDir(Path(sys.argv[1]))\n"
        "except StateError as error: print(os.getuid(), error)\n"
    )
    refused = tmp_path / "closed" / "state"
    done = subprocess.run([sys.executable, "-c", code, str(refused)], capture_output=True, text=True, check=False)
    user, _, said = done.stdout.partition(" ")
    assert said == (
        f"{refused}: cannot be written: Permission denied; let user {user} write there, or give a --state-dir that it "
        "may write\n"
    ), done.stderr


def test_a_file_where_the_folder_should_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "state").touch()
    with pytest.raises(StateError, match=r"state: cannot be written: File exists; remove what is in the way"):
        StateDir(tmp_path / "state")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Invalid JSON"),
        ("{}", "repository: Field required"),
        (state().model_copy(update={"generation": -1}).model_dump_json(), "generation: "),
        (state().model_dump_json().replace('"format":1', '"format":2'), "format: "),
        (state().model_dump_json().replace('"port":0', '"port":0,"prot":1'), "prot: Extra inputs"),
        (state().model_dump_json().replace('"1":[2,1]', '"1":[2]'), "models.minilm: Value error, expected 2 replica"),
    ],
)
def test_a_damaged_state_file_is_refused_and_says_how_to_go_on(tmp_path: Path, text: str, message: str) -> None:
    folder = StateDir(tmp_path)
    folder.state_file.write_text(text)
    with pytest.raises(StateError) as caught:
        folder.read_state()
    assert str(caught.value).startswith(f"{folder.state_file}: ")
    assert message in str(caught.value)
    assert "remove it and start `shardline serve` again" in str(caught.value)


def test_a_missing_state_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(StateError, match=r"control\.json: cannot be read: No such file"):
        StateDir(tmp_path).read_control()


def test_desired_has_each_stage_of_each_version() -> None:
    assert state().desired == {
        Stage("minilm", 1, 0): 2,
        Stage("minilm", 1, 1): 1,
        Stage("minilm", 3, 0): 2,
        Stage("minilm", 3, 1): 1,
    }


def test_a_stopping_cluster_wants_nothing() -> None:
    assert set(state().model_copy(update={"stopping": True}).desired.values()) == {0}


def test_scaling_changes_one_stage_or_each_of_every_version() -> None:
    assert state().scaled("minilm", 1, 5).models["minilm"].replicas == {1: (2, 5), 3: (2, 5)}
    assert state().scaled("minilm", None, 3).models["minilm"].replicas == {1: (3, 3), 3: (3, 3)}


def test_scaling_what_is_not_there_is_refused() -> None:
    with pytest.raises(NotFound, match="no model 'bert' is served; served: minilm"):
        state().scaled("bert", None, 1)
    with pytest.raises(InvalidRequest, match="stage: minilm has stages 0 to 1, got 2"):
        state().scaled("minilm", 2, 1)
    for replicas in (0, 1025):
        with pytest.raises(InvalidRequest, match=f"replicas: expected 1 to 1024, got {replicas}"):
            state().scaled("minilm", None, replicas)


def test_a_revision_is_known_while_history_has_it() -> None:
    past = state().models["minilm"]
    now = past.model_copy(update={"revision": 3})
    entry = HistoryEntry(unix_s=0, model="minilm", what="served", why="", served=past)
    after = state().model_copy(update={"models": {"minilm": now}, "history": (entry,)})
    assert (after.known("minilm", 3), after.known("minilm", 1)) == (now, past)
    assert after.known("minilm", 2) is None
    assert after.known("bert", 1) is None


def test_each_run_has_a_name_that_does_not_give_the_token_away() -> None:
    other = state().model_copy(update={"token": TOKEN[::-1]})
    assert state().run != other.run
    assert state().run not in TOKEN


def test_a_state_dir_has_one_living_owner(tmp_path: Path) -> None:
    folder = StateDir(tmp_path)
    assert folder.owner() is None
    with folder.owned("127.0.0.1:0") as announce:
        announce("127.0.0.1:8001")
        owner = folder.owner()
        assert owner is not None
        assert (owner.pid, owner.listen) == (os.getpid(), "127.0.0.1:8001")
        with (
            pytest.raises(StateError, match=f"process {os.getpid()}, which listens on 127.0.0.1:8001"),
            StateDir(tmp_path).owned("127.0.0.1:8002"),
        ):
            pytest.fail("two owners")
        assert folder.owner() is not None
    assert folder.owner() is None


def test_an_owner_that_was_killed_owns_nothing(tmp_path: Path) -> None:
    code = "import os, sys; from pathlib import Path; from cluster.state import StateDir\n"
    code += "with StateDir(Path(sys.argv[1])).owned('h:1'): os.kill(os.getpid(), 9)"
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False, timeout=60)
    assert killed.returncode == -9
    assert (tmp_path / "serve.lock").read_text()
    assert StateDir(tmp_path).owner() is None
