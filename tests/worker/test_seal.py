from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from worker.errors import Unsupported
from worker.seal import DEFAULT_KEY, KEY_BYTES, holds, make_key, read_key, seal

KEY = bytes(range(32))


def sealed(**changes: str) -> str:
    fields = {"sha256": "a" * 64, "device": "cpu", "instruction_set": "x86_64 AVX2", "torch": "2.13.0", **changes}
    return seal(KEY, **fields)


def test_a_key_is_made_once_and_nobody_else_can_read_it(tmp_path: Path) -> None:
    path = tmp_path / "config" / "key"
    assert read_key(path) is None
    key = make_key(path)
    assert len(key) == KEY_BYTES
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert read_key(path) == key == make_key(path)
    assert list(path.parent.iterdir()) == [path]


def test_two_who_make_the_key_at_once_get_the_same(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        keys = set(pool.map(lambda index: make_key(tmp_path / "key"), range(32)))
    assert len(keys) == 1


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "key"
    make_key(path)
    path.chmod(0o644)
    with pytest.raises(Unsupported, match="chmod 600"):
        read_key(path)


def test_the_key_is_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mounted" / "key"
    monkeypatch.setenv("SHARDLINE_KEY_FILE", str(path))
    key = make_key(DEFAULT_KEY)
    assert path.read_bytes() == key == read_key(DEFAULT_KEY)
    assert read_key(tmp_path / "another") is None, "who names a file means that one"


def test_a_place_of_the_key_that_is_no_path_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHARDLINE_KEY_FILE", "mounted/key")
    with pytest.raises(Unsupported, match=r"SHARDLINE_KEY_FILE: expected the key file's absolute path, got 'mounted/"):
        read_key(DEFAULT_KEY)


def test_a_key_of_another_size_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.touch(0o600)
    path.write_bytes(b"short")
    with pytest.raises(Unsupported, match="5 bytes"):
        read_key(path)


@pytest.mark.parametrize(
    "changes",
    [{"sha256": "b" * 64}, {"device": "cuda"}, {"instruction_set": "x86_64 AVX512"}, {"torch": "2.14.0"}],
)
def test_a_seal_covers_the_content_and_what_it_is_for(changes: dict[str, str]) -> None:
    assert holds(sealed(), sealed())
    assert not holds(sealed(**changes), sealed())


def test_another_key_gives_another_seal() -> None:
    fields = {"sha256": "a" * 64, "device": "cpu", "instruction_set": "x", "torch": "2"}
    assert not holds(seal(KEY, **fields), seal(bytes(32), **fields))
