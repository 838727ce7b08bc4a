import math

import numpy as np
import pytest

from compressor.evaluation.evaluation import Accuracy, Function
from compressor.evaluation.paired_counts import EXACT, paired_shares, records_needed
from compressor.evaluation.records import Records
from worker.errors import InvalidRequest

SMALL = 10


def zeros(count: int) -> Records:
    return Records({"label": np.zeros(count)}, "data.npz")


def answers(records: int, wrong: int) -> np.ndarray:
    found = np.ones(records)
    found[:wrong] = 0
    return found


def chance_of(worse: int, better: int, p_worse: float, p_better: float) -> float:
    """Of these counts among `SMALL` records."""
    same = SMALL - worse - better
    ways = math.comb(SMALL, worse) * math.comb(SMALL - worse, better)
    return ways * p_worse**worse * p_better**better * max(0.0, 1 - p_worse - p_better) ** same


@pytest.mark.parametrize("level", [0.8, 0.95, 0.9875])
def test_whatever_the_true_shares_are_each_end_is_passed_no_more_often_than_promised(level: float) -> None:
    error = (1 - level) / 2
    found = {
        (worse, better): paired_shares(worse, better, SMALL, level=level)
        for worse in range(SMALL + 1)
        for better in range(SMALL + 1 - worse)
    }
    worst = 0.0
    for bound in {round(item.high, 9) for item in found.values() if item.high < 1 - 1e-9}:
        drop = bound + 1e-8  # just over a bound is where the most outcomes are below the truth
        passed = [counts for counts, item in found.items() if item.high < drop]
        for share in np.linspace(0, 1, 21):
            p_better = max(0.0, -drop) + share * (1 - abs(drop)) / 2
            worst = max(worst, sum(chance_of(*counts, p_better + drop, p_better) for counts in passed))
    assert worst <= error * (1 + 1e-6)
    assert worst > error * 0.99  # and the bound is no wider than it must be
    mirrored = found[1, 4]
    assert (found[4, 1].low, found[4, 1].high) == (-mirrored.high, -mirrored.low)


def test_where_no_answer_got_better_the_bound_is_clopper_and_pearsons() -> None:
    for worse, records in ((0, 300), (3, 300), (40, 5000)):
        high = paired_shares(worse, 0, records, level=0.95).high
        under = sum(math.comb(records, k) * high**k * (1 - high) ** (records - k) for k in range(worse + 1))
        assert under == pytest.approx(0.025, rel=1e-6)


def test_with_many_changed_answers_it_is_as_wide_as_theory_says() -> None:
    found = paired_shares(180, 120, 5000, level=0.95)
    half = 1.96 * math.sqrt(300 / 5000**2 - (60 / 5000) ** 2 / 5000)
    assert found.value == 60 / 5000
    assert found.high - found.value == pytest.approx(half, rel=0.05)
    assert found.value - found.low == pytest.approx(half, rel=0.05)


def test_so_many_records_prove_a_share_and_one_fewer_does_not() -> None:
    needed = records_needed(0.005, level=0.95)
    assert needed == 736
    assert paired_shares(0, 0, 736, level=0.95).high <= 0.005 < paired_shares(0, 0, 735, level=0.95).high
    assert records_needed(0, level=0.95) == math.inf
    assert records_needed(1, level=0.95) == 0


def test_a_model_that_loses_the_whole_budget_passes_no_more_often_than_promised() -> None:
    # 1 point is allowed and 1 is lost: of all draws of the records, the proof may say yes to 2.5 % at the most.
    for records in (300, 400, 600):
        data, base = zeros(records), answers(records, 0)
        passed = sum(
            math.comb(records, wrong) * 0.01**wrong * 0.99 ** (records - wrong)
            for wrong in range(10)
            if Accuracy().proven_drop(answers(records, wrong), base, data).high <= 1.0
        )
        assert passed <= 0.025
    assert passed > 0


def test_no_changed_answer_of_few_proves_little_and_says_by_which_interval() -> None:
    same = answers(300, 10)
    found = Accuracy().proven_drop(same, same, zeros(300))
    assert (found.value, found.method) == (0.0, EXACT)
    assert found.high == pytest.approx(1.222, abs=1e-3)
    assert found.low == -found.high


def test_zeros_and_ones_of_a_users_function_are_counted_too_and_other_numbers_are_not() -> None:
    mine = Function("math:sqrt")
    same = answers(300, 10)
    assert mine.proven_drop(same, same, zeros(300)).high == pytest.approx(0.01222, abs=1e-5)
    assert mine.proven_drop(same / 2, same / 2, zeros(300)).high == 0


def test_an_answer_that_is_not_a_number_is_no_proof() -> None:
    broken = answers(300, 0)
    broken[7] = math.nan
    with pytest.raises(InvalidRequest, match="values: nan in record 7"):
        Accuracy().proven_drop(broken, answers(300, 0), zeros(300))
