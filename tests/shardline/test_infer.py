import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardline.infer import Answered, as_line, as_text, datatype_of, pack_bytes, read_npz, unpack
from worker.errors import InvalidRequest


@pytest.mark.parametrize(
    ("dtype", "datatype"),
    [
        ("bool", "BOOL"),
        ("uint8", "UINT8"),
        ("int64", "INT64"),
        ("float16", "FP16"),
        ("float32", "FP32"),
        ("U3", "BYTES"),
    ],
)
def test_arrays_have_the_protocols_datatypes(dtype: str, datatype: str) -> None:
    assert datatype_of("x", np.zeros(2, dtype)) == datatype


def test_a_type_that_the_protocol_does_not_have_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="input 'x': the protocol has no datatype for complex64"):
        datatype_of("x", np.zeros(2, np.complex64))


@given(st.lists(st.binary(max_size=20), max_size=6))
def test_bytes_survive_the_road(elements: list[bytes]) -> None:
    array = np.empty(len(elements), object)
    array[:] = elements
    assert list(unpack("BYTES", (len(elements),), pack_bytes(array))) == elements


def test_numbers_survive_the_road() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_array_equal(unpack("FP32", (2, 3), array.tobytes()), array)


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x03\x04"])
def test_a_file_that_holds_no_arrays_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "in.npz").write_bytes(content)
    with pytest.raises(InvalidRequest, match=r"in\.npz: "):
        read_npz(tmp_path / "in.npz")


def test_a_file_with_pickled_objects_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "in.npz", x=np.array([{"a": 1}], object))
    with pytest.raises(InvalidRequest, match=r"not an \.npz file of plain arrays"):
        read_npz(tmp_path / "in.npz")


def test_a_single_array_is_not_an_npz(tmp_path: Path) -> None:
    with (tmp_path / "in.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(InvalidRequest, match=r"expected an \.npz file with an array for each input"):
        read_npz(tmp_path / "in.npz")


def test_answers_are_shown_short_to_people_and_whole_to_machines() -> None:
    text = np.empty(2, object)
    text[:] = [b"a", b"\xff"]
    answered = Answered("3", {"vector": np.arange(12, dtype=np.float32), "text": text}, 1.234)
    assert as_text("m", answered) == (
        "m/3  1.2 ms\nvector  float32[12]  [0, 1, 2, 3, 4, 5, 6, 7, …]\ntext  object[2]  ['a', '\ufffd']\n"
    )
    line = json.loads(as_line("m", answered))
    assert (line["model"], line["version"], line["ms"]) == ("m", "3", 1.234)
    assert line["outputs"]["vector"] == {"shape": [12], "data": [float(value) for value in range(12)]}
    assert line["outputs"]["text"]["data"] == ["a", "\ufffd"]
