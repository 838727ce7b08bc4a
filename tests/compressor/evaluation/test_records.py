from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from compressor.evaluation.records import Records, keys_of, read_records, sample, split, without_overlap
from worker.errors import InvalidRequest


def table(**columns: list[object]) -> Records:
    return Records({name: np.array(values, dtype=object) for name, values in columns.items()}, "data.csv")


def test_a_csv_is_read_with_its_header_or_with_the_given_names(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text('a,"b, c",1.5\nd,e,2\n')
    bare = read_records(path, ("left", "right", "score"))
    assert list(bare.columns["right"]) == ["b, c", "e"]
    assert list(bare.numbers("score")) == [1.5, 2.0]
    path.write_text("score,left,right\n1,x,y\n")
    assert list(read_records(path, ("left", "right", "score")).columns["left"]) == ["x"]


def test_a_quote_in_tab_separated_text_is_a_letter(tmp_path: Path) -> None:
    path = tmp_path / "reviews.tsv"
    path.write_text('it is "fine\t1\nno\t0\n')
    assert list(read_records(path, ("text", "label")).columns["text"]) == ['it is "fine', "no"]


def test_json_lines_and_arrays_are_read(tmp_path: Path) -> None:
    lines, arrays = tmp_path / "a.jsonl", tmp_path / "b.npz"
    lines.write_text('{"text": "a", "ids": [1, 2]}\n\n{"text": "b", "ids": [3, 4]}\n')
    np.savez(arrays, x=np.zeros((3, 2)), label=np.arange(3))
    assert read_records(lines).columns["ids"].shape == (2, 2)
    assert len(read_records(arrays)) == 3


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.csv", "", "no records"),
        ("a.csv", "x,y\n1\n", "record 0 has 1 columns; expected 2"),
        ("a.csv", "x,x\n1,2\n", "two columns have one name"),
        ("a.jsonl", "{}\nnot json\n", "line 2 is not JSON"),
        ("a.jsonl", '{"a": 1}\n{"b": 1}\n', "line 2: expected an object with the keys a"),
        ("a.jsonl", '{"a": [1]}\n{"a": [1, 2]}\n', "different lengths"),
        ("a.jsonl", "[" * 100_000, "line 1 is not JSON"),
        ("a.csv", f'x,y\n"{"a" * 200_000}",1\n', r"a\.csv.*line 2: field larger than field limit .*\.jsonl"),
        ("a.npz", "nonsense", "not plain arrays"),
        ("a.npz", "", "not plain arrays, or damaged: .*numpy.savez"),
        ("a.txt", "x", "expected .csv, .tsv, .jsonl or .npz"),
    ],
)
def test_what_is_no_table_is_refused_with_its_place(tmp_path: Path, name: str, content: str, told: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(InvalidRequest, match=told):
        read_records(path)


def test_a_missing_file_and_arrays_of_different_lengths_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="cannot be read"):
        read_records(tmp_path / "none.csv")
    np.savez(tmp_path / "a.npz", x=np.zeros(3), label=np.zeros(2))
    with pytest.raises(InvalidRequest, match="as many rows"):
        read_records(tmp_path / "a.npz")


def arrays_cut_off(path: Path) -> None:
    np.savez_compressed(path, x=np.random.default_rng(0).normal(size=(50, 4)), label=np.arange(50))
    path.write_bytes(path.read_bytes()[:500])


def arrays_with_a_hole(path: Path) -> None:
    np.savez_compressed(path, x=np.random.default_rng(0).normal(size=(50, 4)), label=np.arange(50))
    content = path.read_bytes()
    path.write_bytes(content[:200] + bytes(50) + content[250:])


def one_array(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.zeros((50, 4)))


@pytest.mark.parametrize("write", [arrays_cut_off, arrays_with_a_hole, one_array])
def test_damaged_arrays_and_one_array_by_another_name_are_refused_with_the_file_and_the_mend(
    write: Callable[[Path], None], tmp_path: Path
) -> None:
    write(tmp_path / "broken.npz")
    with pytest.raises(
        InvalidRequest, match=r"broken\.npz': not plain arrays, or damaged: .*write it with numpy.savez"
    ):
        read_records(tmp_path / "broken.npz")


def test_what_is_no_text_is_refused_with_its_record(tmp_path: Path) -> None:
    lines = tmp_path / "a.jsonl"
    for value in ("null", "3", '"\\ud83d"'):
        lines.write_text('{"text": "a", "label": 0}\n{"text": %s, "label": 1}\n' % value)  # noqa: UP031
        records = read_records(lines)
        assert len(keys_of(records, ("text",))) == len(set(keys_of(records, ("text",)))) == 2
        with pytest.raises(InvalidRequest, match=r"a\.jsonl: column 'text': .* in record 1 is not a text"):
            records.texts("text")
    assert table(text=["a", "ü"]).texts("text") == ["a", "ü"]


def test_a_label_that_is_no_number_is_refused_with_its_record() -> None:
    with pytest.raises(InvalidRequest, match=r"column 'score': 'good' in record 1 is not a number"):
        table(score=["1", "good"]).numbers("score")
    with pytest.raises(InvalidRequest, match=r"column 'score': nan in record 0"):
        table(score=["nan", "1"]).numbers("score")
    for value in (None, {"a": 1}, [1], 10**400):
        with pytest.raises(InvalidRequest, match=r"column 'score': .* in record 1 is not a number; give one there"):
            table(score=["1", value, "x"]).numbers("score")
    pairs = Records({"label": np.zeros((3, 2))}, "data.npz")
    with pytest.raises(InvalidRequest, match=r"data.npz: column 'label' has \[2\] a record; expected one number each"):
        pairs.numbers("label")
    with pytest.raises(InvalidRequest, match=r"no column 'scores'; there is score"):
        table(score=["1"]).column("scores")


@pytest.mark.parametrize("kept_as", [np.float64, np.float16, np.int64, np.uint8, np.bool_])
def test_a_record_is_the_same_whichever_type_its_numbers_are_kept_in(kept_as: type) -> None:
    pixels = np.array([[0, 1, 1], [1, 0, 0]])
    ours = Records({"x": pixels[:1].astype(np.float32)}, "ours.npz")
    theirs = Records({"x": pixels.astype(kept_as)}, "theirs.npz")
    with pytest.raises(InvalidRequest, match="1 of 1 records are also in theirs"):
        without_overlap(ours, theirs, ("x",), drop=False)


def test_fractions_are_the_same_in_single_and_double_and_shapes_and_large_numbers_tell_records_apart() -> None:
    def key(value: object) -> bytes:
        return keys_of(Records({"x": np.array([value])}, "data.npz"), ("x",))[0]

    assert key(np.float32(0.1)) == key(np.float64(0.1))
    assert key(0.0) == key(-0.0)
    assert key(2**24 + 1) != key(2**24)
    assert key([[1.0, 2.0]]) != key([1.0, 2.0])


def test_a_record_that_is_in_both_is_refused_whatever_its_label_and_order() -> None:
    ours = table(sentence1=["a", "x"], sentence2=["b", "y"], score=["1", "2"])
    theirs = table(sentence1=["y", "q"], sentence2=["x", "r"], score=["4", "5"])
    columns = ("sentence1", "sentence2")
    with pytest.raises(InvalidRequest, match=r"1 of 2 records are also in data.csv \(the first is record 1\)"):
        without_overlap(ours, theirs, columns, drop=False)
    left = without_overlap(ours, theirs, columns, drop=True)
    assert list(left.columns["sentence1"]) == ["a"]
    with pytest.raises(InvalidRequest, match="every record"):
        without_overlap(ours, ours, columns, drop=True)


def test_a_split_keeps_equal_records_together_and_shares_none() -> None:
    records = table(text=[f"text {place % 40}" for place in range(100)], label=list(range(100)))
    first, second = split(records, ("text",), 0.25, seed=3)
    assert len(first) + len(second) == 100
    assert 15 <= len(first) <= 35
    assert not set(keys_of(first, ("text",))) & set(keys_of(second, ("text",)))
    again, _ = split(records, ("text",), 0.25, seed=3)
    other, _ = split(records, ("text",), 0.25, seed=4)
    assert again.digest() == first.digest() != other.digest()


def test_too_few_different_records_cannot_be_split() -> None:
    with pytest.raises(InvalidRequest, match="1 different records are too few"):
        split(table(text=["a"] * 10), ("text",), 0.5, seed=0)


def test_a_sample_has_no_more_than_was_asked_for_in_order() -> None:
    found = sample(table(place=list(range(100))), 10, seed=1)
    assert len(found) == 10
    assert list(found.columns["place"]) == sorted(found.columns["place"])
    assert len(sample(found, 10, seed=1)) == 10
