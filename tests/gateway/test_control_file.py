from pathlib import Path

import pytest

from gateway.control_file import Control, ControlFileError, read_control_file


def written(folder: Path, text: str, mode: int = 0o600) -> Path:
    path = folder / "control.json"
    path.write_text(text)
    path.chmod(mode)
    return path


def test_the_address_and_the_token_are_read(tmp_path: Path) -> None:
    control = read_control_file(written(tmp_path, '{"address": "127.0.0.1:43211", "token": "secret"}'))
    assert control == Control("127.0.0.1:43211", "secret")
    assert "secret" not in repr(control)


def test_a_missing_file_is_told_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(
        ControlFileError, match=r"cannot read the control file .*control.json: No such file.*cluster up"
    ):
        read_control_file(tmp_path / "control.json")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o620])
def test_a_file_that_others_may_touch_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(ControlFileError, match="others may read it: chmod 600"):
        read_control_file(written(tmp_path, '{"address": "127.0.0.1:1", "token": "t"}', mode))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is not JSON"),
        ("[]", "expected an object with the keys"),
        ('{"address": "127.0.0.1:1"}', "expected an object with the keys"),
        ('{"address": "127.0.0.1:1", "token": "t", "more": 1}', "and no others"),
        ('{"address": "127.0.0.1", "token": "t"}', '"address" is host:port'),
        ('{"address": 7, "token": "t"}', '"address" is host:port'),
        ('{"address": "127.0.0.1:1", "token": ""}', '"token" is a line of printable ASCII'),
        ('{"address": "127.0.0.1:1", "token": "a\\nb"}', '"token" is a line of printable ASCII'),
        ('{"address": "127.0.0.1:1", "token": null}', '"token" is a line of printable ASCII'),
    ],
)
def test_a_file_that_is_not_what_it_should_be_is_refused(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ControlFileError, match=says):
        read_control_file(written(tmp_path, text))
