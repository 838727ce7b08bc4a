import numpy as np
import pytest

from compressor.evaluation.evaluation import Accuracy, Perplexity
from compressor.evaluation.records import Records
from compressor.search.budget import check_provable
from compressor.search.finals import HeldOut
from tests import models
from worker.errors import InvalidRequest


def records(count: int) -> Records:
    return Records({"label": np.zeros(count)}, "dev.npz")


def test_so_few_records_that_no_outcome_proves_the_budget_are_refused_with_how_many_it_takes() -> None:
    check_provable(Accuracy(), records(736), 0.5)
    with pytest.raises(
        InvalidRequest,
        match=r"dev\.npz: 735 held-out records cannot prove that at most 0\.5 points are lost, .*: that takes 736;",
    ):
        check_provable(Accuracy(), records(735), 0.5)


def test_no_number_of_records_proves_that_nothing_is_lost() -> None:
    with pytest.raises(InvalidRequest, match=r"at most 0 points are lost, .*: no number can; give a larger --max-drop"):
        check_provable(Accuracy(), records(10_000), 0.0)


def test_figures_of_which_nothing_is_known_beforehand_are_not_refused() -> None:
    check_provable(Perplexity(), records(2), 0.01)


def test_looks_that_could_prove_nothing_are_known_beforehand() -> None:
    """0.95, 0.975, ... of certainty take 368, 437, ... records without any change for one point (-ln(error) / 0.01)."""
    held_out = HeldOut(Accuracy(), models.attention(), records(400), 0)
    assert [held_out.provable(look, 1.0) for look in (1, 2, 3)] == [True, False, False]
    assert held_out.provable(3, 2.0)
