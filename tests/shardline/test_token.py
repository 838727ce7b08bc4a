from pathlib import Path

import pytest

from shardline.cli import parser
from shardline.serving import TokenError, read_token


def test_the_token_is_the_one_line_of_its_file(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("0123456789abcdef" * 4 + "\n")
    assert read_token(tmp_path / "token") == "0123456789abcdef" * 4


@pytest.mark.parametrize("content", [b"", b"short\n", b"two words " * 8, b"line\n" * 16, b"\xff" * 64])
def test_what_is_no_token_is_refused_with_how_to_make_one(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "token").write_bytes(content)
    with pytest.raises(TokenError, match=r"openssl rand -hex 32|cannot be read"):
        read_token(tmp_path / "token")


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(TokenError, match="cannot be read"):
        read_token(tmp_path / "token")


@pytest.mark.parametrize("port", ["0", "65536", "x", "-1"])
def test_a_control_port_that_cannot_be_is_refused(port: str) -> None:
    with pytest.raises(SystemExit):
        parser().parse_args(["serve", "models", "--control-port", port])
