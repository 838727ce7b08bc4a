import argparse
import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from cluster.state import Control, StateDir
from shardline import exits
from shardline.cli import default_state_dir, main, parser, scale_target


def commands() -> dict[str, argparse.ArgumentParser]:
    (action,) = (one for one in parser()._actions if isinstance(one, argparse._SubParsersAction))
    return dict(action.choices)


COMMANDS = [
    *("package", "compress", "tune", "compile", "profile", "plan", "serve", "status", "infer", "scale"),
    *("rollout", "rollback", "history", "stop"),
]


def test_the_commands_are_those_that_the_documentation_names() -> None:
    assert list(commands()) == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_every_argument_says_what_it_is(command: str) -> None:
    assert not [one.dest for one in commands()[command]._actions if not one.help]


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == exits.OK
    assert capsys.readouterr().out == f"shardline {version('shardline')}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == exits.OK
    assert f"example: shardline {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["fly"], "invalid choice: 'fly'"),
        (["package", "a:b"], "required: --out"),
        (["package", "a:b", "--out", "m", "--quantize", "int3"], "invalid choice: 'int3'"),
        (["package", "a:b", "--out", "m", "--stages", "0"], "'0' is not a whole number from 1 to 1024"),
        (["serve", "models", "--listen", "8001"], "'8001' is not HOST:PORT, such as 127.0.0.1:8001"),
        (["serve", "models", "--processes", "-1"], "'-1' is not a whole number"),
        (["serve", "models", "--max-message-bytes", "64M"], "'64M' is not a whole number from 1 to 1073741824"),
        (["serve", "models", "--notice-s", "-1"], "'-1' is not a number of seconds"),
        (["serve", "models", "--finish-s", "soon"], "'soon' is not a number of seconds"),
        (["infer", "minilm"], "one of the arguments --text --input is required"),
        (["infer", "minilm", "--text", "a", "--input", "f"], "not allowed with argument"),
        (["infer", "minilm", "--text", "a", "--timeout", "soon"], "'soon' is not a number of seconds"),
        (["scale", "minilm"], "'minilm' is not MODEL=N or MODEL/STAGE=N, such as minilm=2 or minilm/1=3"),
        (["scale", "minilm/x=2"], "is not MODEL=N"),
        (["scale", "minilm=-2"], "is not MODEL=N"),
        (["plan", "m", "--p99", "m=soon"], "'soon' is not a time such as 100ms or 0.5s"),
        (["plan", "m", "--p99", "=1s"], "'=1s' is neither TIME nor NAME=TIME"),
        (["stop", "--within", "nan"], "'nan' is not a number of seconds"),
    ],
)
def test_a_wrong_command_line_says_what_is_wrong(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == exits.USAGE
    assert message in capsys.readouterr().err


def test_an_embedded_cluster_cannot_be_left_running(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", str(tmp_path), "--leave-running", "--state-dir", str(tmp_path / "state")]) == exits.FAILED
    assert "--leave-running: expected --address ADDRESS beside it, got none" in capsys.readouterr().err
    assert not (tmp_path / "state").exists()


def test_a_scale_target_is_a_model_a_stage_and_a_number() -> None:
    assert scale_target("minilm=2") == ("minilm", None, 2)
    assert scale_target("my.model-2/11=30") == ("my.model-2", 11, 30)


def test_the_state_dir_stands_where_the_user_keeps_state() -> None:
    assert default_state_dir("/state") == Path("/state/shardline/default")
    assert default_state_dir("") == Path.home() / ".local/state/shardline/default"
    given = parser().parse_args(["status", "--state-dir", "/elsewhere"])
    assert given.state_dir == Path("/elsewhere")


@pytest.mark.parametrize(
    "command", [["status"], ["status", "--json"], ["infer", "m", "--text", "a"], ["scale", "m=1"], ["stop"]]
)
@pytest.mark.parametrize("there", [False, True])
def test_commands_say_that_nothing_serves(
    command: list[str], there: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "state"
    if there:
        StateDir(folder).write_control(Control(address="127.0.0.1:1", token="0123456789abcdef"))
    assert main([*command, "--state-dir", str(folder)]) == exits.NOT_SERVING
    told = capsys.readouterr()
    assert f"nothing serves for the state dir {folder}" in told.err
    assert told.out == ""


def test_what_cannot_be_served_is_told_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    at = ["--listen", "127.0.0.1:0", "--state-dir", str(tmp_path / "state")]
    assert main(["serve", str(tmp_path / "models"), *at]) == exits.FAILED
    assert f"{tmp_path / 'models'}: no such folder; `shardline package" in capsys.readouterr().err
    (tmp_path / "models" / "m" / "1").mkdir(parents=True)
    (tmp_path / "models" / "m" / "model.yaml").write_text("stages: 1\nreplica: 2\n")
    assert main(["serve", str(tmp_path / "models"), *at]) == exits.FAILED
    assert "m/model.yaml:2: replica: unknown key; did you mean replicas?" in capsys.readouterr().err
    (tmp_path / "models" / "m" / "model.yaml").write_text("")
    assert main(["serve", str(tmp_path / "models"), *at]) == exits.FAILED
    assert "m/1/manifest.json: missing" in capsys.readouterr().err


def test_package_and_compile_say_what_cannot_be_packaged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["package", "no_such_module:f", "--out", str(tmp_path / "m")]) == exits.FAILED
    assert "no_such_module" in capsys.readouterr().err
    assert main(["compile", str(tmp_path / "m" / "1")]) == exits.FAILED
    assert "shardline: " in capsys.readouterr().err


def test_package_writes_a_version_and_how_to_serve_it_and_keeps_the_operators_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--out", str(tmp_path / "chain"), "--stages", "2", "--runtime", "eager"]
    assert main(["package", "tests.models:chain", *options]) == exits.OK
    told = capsys.readouterr()
    assert told.out == f"{tmp_path}/chain/1\n"
    assert "capturing the program" in told.err
    written = (tmp_path / "chain" / "model.yaml").read_text()
    assert "\nstages: 2\n" in written
    (tmp_path / "chain" / "model.yaml").write_text("replicas: 3\n")
    assert main(["package", "tests.models:chain", *options]) == exits.OK
    assert capsys.readouterr().out == f"{tmp_path}/chain/2\n"
    assert (tmp_path / "chain" / "model.yaml").read_text() == "replicas: 3\n"


def test_a_file_that_cannot_be_opened_is_named_with_what_to_do(
    toy_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models, log = tmp_path / "models", tmp_path / "state" / "ray.log"
    shutil.copytree(toy_folder, models / "toy" / "1")
    (models / "toy" / "model.yaml").touch()
    log.mkdir(parents=True)
    at = ["--listen", "127.0.0.1:0", "--state-dir", str(tmp_path / "state")]
    assert main(["serve", str(models), *at]) == exits.FAILED
    assert capsys.readouterr().err.endswith(
        f"shardline: {log}: cannot be written: Is a directory; remove what is in the way, or give another --state-dir\n"
    )


def test_an_output_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "shardline.cli", "package", "tests.models:chain", "--runtime", "eager"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*command, "--out", str(tmp_path / "chain")], env={**os.environ, "PYTHONUNBUFFERED": ""},
            stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=120,
        )  # fmt: skip
    assert done.returncode == exits.FAILED
    assert done.stderr.endswith(
        "shardline: standard output: No space left on device; make room there, and run the command again\n"
    )


def test_the_command_starts_without_torch_or_ray() -> None:
    code = "import sys, shardline.cli, shardline.running, shardline.status, shardline.infer\n"
    code += "print(sorted({'torch', 'ray', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "[]\n"


def test_who_reads_our_output_may_go(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    code = "import sys; from shardline import cli, exits; import argparse\n"
    code += "cli.parser = lambda: argparse.Namespace(parse_args=lambda _: argparse.Namespace(run=run))\n"
    code += "def run(_): sys.stdout.write('x' * 100000); sys.stdout.flush(); return 0\n"
    code += "sys.exit(cli.main([]))"
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=write, stderr=subprocess.PIPE, text=True, check=False, timeout=60
    )
    os.close(write)
    assert done.returncode == exits.FAILED
    assert done.stderr == ""


def test_the_control_file_is_what_gateways_read(tmp_path: Path) -> None:
    folder = StateDir(tmp_path)
    folder.write_control(Control(address="127.0.0.1:1234", token="0123456789abcdef"))
    assert sorted(json.loads(folder.control_file.read_text())) == ["address", "token"]
