import pytest

from compressor.evaluation.bootstrap import Interval
from compressor.search.mixing import Mixing, Point
from compressor.search.verdict import LEAD, next_asked, slower_batch, why_none, worthy
from compressor.search.wholes import NO_TIME
from compressor.steps import read_steps

ALLOWED = 0.5


def point(name: str, seconds: float | None, high: float, *, whole: str = "") -> Point:
    recipe = tuple(read_steps([{"kind": "int8_dynamic", "layers": [name]}]))
    return Point(name, recipe, {}, Interval(high / 2, 0.0, high, 0.8), 0.0, 1, seconds, whole=whole)


def mixing_of(*points: Point) -> Mixing:
    nothing = Interval(0.0, 0.0, 0.0, 0.8)
    mixing = Mixing((), lambda _: nothing, ALLOWED, timed=True)
    mixing.points[()] = Point("uncompressed", (), {}, nothing, 0.0, 1, 10.0)
    mixing.points |= {each.recipe: each for each in points}
    return mixing


def test_a_mix_is_asked_before_one_treatment_of_the_whole_model_only_if_it_is_clearly_faster() -> None:
    whole, level, faster = point("whole", 4.0, 0.1, whole="t"), point("level", 3.99, 0.1), point("fast", 3.5, 0.1)
    assert level.seconds is not None
    assert level.seconds * LEAD > 4.0
    assert [each.name for each in worthy(mixing_of(level, faster, whole))] == ["fast", "whole", "level"]


def test_what_is_slower_or_loses_too_much_or_was_not_timed_or_was_asked_is_not_asked() -> None:
    asked = point("asked", 1.0, 0.1)
    asked.verdict = "may lose 0.7"
    points = [point("slow", 10.0, 0.1), point("lossy", 1.0, 0.6), point("untimed", None, 0.1), asked]
    assert worthy(mixing_of(*points)) == []


def test_where_size_is_the_objective_measured_artifacts_come_first_and_the_smallest_of_them_before_all() -> None:
    points = [point(name, None, 0.1) for name in ("light", "heavy", "unmeasured", "large")]
    for each, weights, share in zip(points, (10, 30, 5, 100), (0.6, 0.4, None, None), strict=True):
        each.bytes, each.share = weights, share
    mixing = mixing_of(*points)
    mixing.timed, mixing.points[()].bytes = False, 90
    assert [each.name for each in worthy(mixing)] == ["heavy", "light", "unmeasured"]


def test_the_fastest_is_asked_and_where_none_can_follow_the_fastest_that_is_likely_to_be_proven() -> None:
    fast, likely, slow = point("fast", 1.0, 0.45), point("likely", 2.0, 0.2), point("slow", 9.0, 0.0)
    assert next_asked([fast, likely, slow], ALLOWED, last=False) is fast
    assert next_asked([fast, likely, slow], ALLOWED, last=True) is likely
    assert next_asked([fast, point("other", 2.0, 0.4)], ALLOWED, last=True).name == "other"


def test_what_is_slower_at_one_of_the_batches_is_slower() -> None:
    seconds = {"1x64": [1.0, 1.0], "32x64": [33.0, 32.0]}
    assert slower_batch(seconds, 1.02) == "32x64"
    assert slower_batch(seconds, 1.04) is None
    assert slower_batch(seconds, 1.0) == "1x64"


def test_the_best_of_the_whole_model_keeps_the_budget_and_a_mix_must_promise_more() -> None:
    mixing = mixing_of(point("lossy", 1.0, 0.6, whole="a"), point("good", 4.0, 0.2, whole="b"), point("mix", 2.0, 0.1))
    best = mixing.best_whole()
    assert best is not None
    assert best.name == "good"
    mixing.costs = [[0.0, -5.0, -7.0]]
    assert [mixing.promises([place]) for place in (0, 1, 2)] == [False, False, True]


@pytest.mark.parametrize(
    ("left_out", "told"),
    [
        ({}, "the time limit ended before even one treatment of the whole model was built and judged"),
        ({"int8_dynamic": NO_TIME}, "that takes about 95 s"),
        (
            {"int8_dynamic": "it takes 300 ms for the whole model, and 10 ms uncompressed", "fp16": NO_TIME},
            "nothing that was tried makes the model faster (int8_dynamic everywhere: it takes 300 ms",
        ),
    ],
)
def test_where_nothing_could_be_judged_it_says_whether_time_or_speed_was_missing(
    left_out: dict[str, str], told: str
) -> None:
    mixing = mixing_of()
    mixing.left_out, mixing.needed_s = left_out, 95.0
    assert told in why_none(mixing)


def test_where_nothing_keeps_the_budget_it_says_what_came_nearest() -> None:
    told = why_none(mixing_of(point("far", 1.0, 3.0), point("near", 1.0, 0.7)))
    assert "the most careful mix (near) may lose 0.7 on calibration data, and 0.5 is allowed" in told
