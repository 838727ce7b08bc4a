from pathlib import Path

import numpy as np
import pytest
import torch

from compressor.evaluation.evaluation import find_evaluation
from compressor.evaluation.records import Records, read_records
from compressor.search.lessons import check_apart, read_lessons
from compressor.search.treatments import treatment
from compressor.training.training_data import Rows
from tests.compressor.search.tiny import WIDTH, classifier, write_data
from worker.errors import InvalidRequest

TAUGHT = treatment({"kind": "fine_tune"})
HERE = __name__


def ones() -> Rows:
    return Rows((torch.ones(8, WIDTH),), torch.zeros(8, dtype=torch.int64))


def held_out(x: np.ndarray) -> Records:
    return Records({"x": x, "label": np.zeros(len(x))}, "held-out.npz")


def texts(*values: str) -> np.ndarray:
    return np.array(values, dtype=object)


def test_a_file_is_read_once_for_all_and_a_function_gives_its_data_anew(tmp_path: Path) -> None:
    file = write_data(tmp_path / "training.npz", classifier(), 64, seed=7)
    other, accuracy = held_out(np.zeros((4, WIDTH), np.float32)), find_evaluation("accuracy")

    def lessons(source: str | None, *treatments: str) -> object:
        chosen = [treatment({"kind": kind}) for kind in treatments]
        return read_lessons(source, chosen, classifier(), seed=3, held_out=other, evaluation=accuracy)

    rows = lessons(str(file), "fine_tune")
    assert isinstance(rows, Rows)
    assert torch.equal(rows.inputs[0], torch.from_numpy(read_records(file).column("x")))
    assert rows.seed == 3
    assert lessons(f"{HERE}:ones", "fine_tune") is None
    assert lessons(None, "int8_dynamic") is None


def test_held_out_records_are_found_in_what_a_function_gives() -> None:
    ours = np.zeros((4, WIDTH), np.float64)
    ours[2] = 1
    with pytest.raises(
        InvalidRequest, match=r"test_lessons:ones': 8 of 8 records are also among those of held-out.npz"
    ):
        read_lessons(
            f"{HERE}:ones",
            [TAUGHT],
            classifier(),
            seed=0,
            held_out=held_out(ours),
            evaluation=find_evaluation("accuracy"),
        )


def test_a_pair_of_sentences_is_held_out_where_both_are_among_the_texts_that_teach() -> None:
    pairs = Records({"sentence1": texts("a", "c"), "sentence2": texts("b", "d"), "score": np.zeros(2)}, "dev.csv")
    spearman = find_evaluation("spearman")
    check_apart(Records({"text": texts("a", "d", "e")}, "train.csv"), pairs, classifier(), spearman)
    check_apart(Records({"text": np.zeros((3, 2))}, "train.npz"), pairs, classifier(), spearman)
    with pytest.raises(InvalidRequest, match=r"train\.csv: 2 of 3 records .* \(the first is record 1\)"):
        check_apart(Records({"text": texts("a", "d", "c")}, "train.csv"), pairs, classifier(), spearman)


def test_a_users_evaluation_has_its_labels_beside_its_texts_and_they_are_no_texts() -> None:
    asked = Records({"question": texts("a", "b"), "label": texts("0", "1")}, "dev.csv")
    evaluation = find_evaluation(f"{HERE}:right")
    check_apart(Records({"text": texts("c", "1")}, "train.csv"), asked, classifier(), evaluation)
    with pytest.raises(InvalidRequest, match=r"train\.csv: 1 of 2 records .* \(the first is record 1\)"):
        check_apart(Records({"text": texts("c", "b")}, "train.csv"), asked, classifier(), evaluation)


def right() -> None:
    """An evaluation that is not called."""
