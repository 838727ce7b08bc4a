from pathlib import Path

import pytest

from compressor.search.store import Store, key_of


def test_a_result_is_found_again_by_what_decided_it(tmp_path: Path) -> None:
    key = key_of(["judge", {"kind": "a"}])
    Store(tmp_path).put(key, {"distance": 0.5})
    assert Store(tmp_path).get(key) == {"distance": 0.5}
    assert Store(tmp_path).get(key_of(["judge", {"kind": "b"}])) is None
    assert len(Store(tmp_path)) == 1


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 1, "key": "other", "result": {}}', '{"format": 99}'])
def test_a_damaged_result_is_measured_again(tmp_path: Path, content: str) -> None:
    store = Store(tmp_path)
    store.put("k", {"a": 1})
    (tmp_path / "trials" / "k.json").write_text(content)
    assert store.get("k") is None


def test_a_result_whose_file_is_gone_is_measured_again(tmp_path: Path) -> None:
    store = Store(tmp_path)
    (store.files / "k.pt2").write_bytes(b"x")
    store.put("k", {"file": "k.pt2"})
    assert store.get("k") == {"file": "k.pt2"}
    (store.files / "k.pt2").unlink()
    assert store.get("k") is None


def test_a_result_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(ValueError, match="JSON"):
        store.put("k", {"a": float("nan")})
    assert list((tmp_path / "trials").iterdir()) == []
