import math
from pathlib import Path

import pytest

from compressor.search.pace import MARGIN, Costs, Pace, Shares, next_wholes, times
from compressor.search.store import Store

COSTS = Costs(package=40.0, look=20.0, judge=10.0, build=30.0, timing=5.0)


def test_a_last_word_is_kept_free_from_the_beginning_and_two_while_mixes_are_looked_for() -> None:
    found = times(1000.0, COSTS, width=2, mixes=7, finalists=3)
    final = MARGIN * (40 + 5 + 20)
    assert found.wholes == pytest.approx(1000 - final)
    assert found.mixes == pytest.approx(1000 - 2 * final)
    assert found.judged == pytest.approx(found.mixes - MARGIN * (2 * 30 + 5))
    assert found.parts == pytest.approx(found.judged - MARGIN * 4 * 10)


def test_without_a_limit_no_phase_ends() -> None:
    found = times(math.inf, COSTS, width=2, mixes=7, finalists=3)
    assert (found.wholes, found.parts, found.mixes) == (math.inf, math.inf, math.inf)


@pytest.mark.parametrize(
    ("left", "first", "count"),
    [
        (1000.0, False, 2),
        (1000.0, True, 1),  # the uncompressed model is built beside it
        (60.0, False, 1),  # two at once would take more than is left
        (20.0, False, 0),
        (20.0, True, 1),
        (0.0, True, 0),
        (math.inf, False, 2),
    ],
)
def test_so_many_treatments_of_the_whole_model_are_tried_at_once_as_there_is_time_for(
    left: float, first: bool, count: int
) -> None:
    assert next_wholes(5, left, COSTS.whole, 2, first=first) == count


def test_no_more_are_tried_than_are_waiting() -> None:
    assert next_wholes(1, math.inf, 1.0, 8, first=False) == 1
    assert next_wholes(3, math.inf, 1.0, 1, first=True) == 1


def test_trainings_share_their_time_evenly_and_what_one_leaves_goes_to_those_after_it() -> None:
    shares = Shares(60.0, 3)
    found = []
    for took in (20.0, 4.0, 36.0):
        found.append(shares.next(math.inf))
        shares.took(took)
    assert found == [20.0, 20.0, 36.0]
    assert Shares(60.0, 1).next(25.0) == 25.0
    assert Shares(math.inf, 2).next(math.inf) == math.inf


def test_work_is_expected_to_take_what_the_longest_of_its_kind_took(tmp_path: Path) -> None:
    pace = Pace(Store(tmp_path), "k", math.inf, 1)
    assert pace.costs == Costs(0.0, 0.0, 0.0, 0.0, 0.0)
    pace.note("package", 30.0)
    assert pace.costs.build == 30.0
    for seconds in (5.0, 9.0, 7.0):
        pace.note("build", seconds)
    pace.note("judge", 2.0)
    assert pace.costs.whole == 9.0 + 2.0
    assert pace.costs.final == 30.0


def test_a_search_that_goes_on_knows_how_long_what_it_finds_made_took(tmp_path: Path) -> None:
    Store(tmp_path).put(_key(tmp_path), {"took_s": 50.0})
    pace = Pace(Store(tmp_path), "k", math.inf, 1)
    with pace.clocked("package"):
        pass
    assert pace.costs.package == 50.0
    assert Store(tmp_path).get(_key(tmp_path)) == {"took_s": 50.0}


def _key(folder: Path) -> str:
    """Under which work of the kind "package" is stored."""
    other = folder / "other"
    with Pace(Store(other), "k", math.inf, 1).clocked("package"):
        pass
    (path,) = (other / "trials").iterdir()
    return path.stem
