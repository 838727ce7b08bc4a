import math
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from compressor.evaluation.bootstrap import Interval
from compressor.evaluation.evaluation import find_evaluation
from compressor.evaluation.records import read_records
from compressor.search.builder import Builder
from compressor.search.explore import explore
from compressor.search.fan_out import Here
from compressor.search.finals import HeldOut
from compressor.search.groups import find_groups
from compressor.search.laboratory import Judged, Laboratory
from compressor.search.mixing import Mixing, times_of
from compressor.search.objective import read_objective
from compressor.search.pace import Pace
from compressor.search.store import Store
from compressor.search.treatments import Treatment, treatment
from compressor.search.trial import Setting, context_of, fresh_model
from compressor.search.verdict import Bench, choose
from compressor.search.whole_only import try_whole_only
from tests.compressor.search.tiny import classifier, small_classifier, write_data

HALF = treatment({"kind": "prune_neurons", "share": 0.5})
MOST = treatment({"kind": "prune_neurons", "share": 0.75})
INT8 = treatment({"kind": "int8_dynamic"})
SPARSE = treatment({"kind": "prune_weights", "sparsity": 0.5}, {"kind": "sparse"})
HOUR = 3600.0


class Told(list[str]):
    """What was said, with trials' kinds in their order."""

    def first(self, start: str) -> int:
        return next(place for place, step in enumerate(self) if step.startswith(start))


@pytest.fixture
def explored(tmp_path: Path) -> Callable[..., tuple[Mixing, Told, Laboratory]]:
    def make(
        *treatments: Treatment, small: bool = False, package_s: float = 0.0, limit_s: float = math.inf
    ) -> tuple[Mixing, Told, Laboratory]:
        name = "small_classifier" if small else "classifier"
        evaluation = find_evaluation("accuracy")
        data = write_data(tmp_path / "data.npz", small_classifier() if small else classifier(), 400, seed=1)
        setting = Setting(
            f"tests.compressor.search.tiny:{name}",
            "accuracy",
            read_records(data, evaluation.names),
            read_objective("latency@64"),
            runtime="eager",
            key=f"{name} {package_s}",
        )
        said = Told()
        store = Store(tmp_path)
        pace = Pace(store, setting.key, time.monotonic() + limit_s, Here.width)
        pace.note("package", package_s)
        lab = Laboratory(setting, store, Here(setting), pace, said.append)
        base = lab.judged([()], "base", math.inf)[()]
        model = fresh_model(setting)

        def drop(judged: Judged) -> Interval:
            return evaluation.drop(judged.answers, base.answers, setting.calibration, level=0.8)

        groups = find_groups(model.module, treatments, context_of(setting, model), most=48)
        mixing = Mixing(groups, drop, 2.0, timed=True)
        explore(lab, mixing, base, [each.name for each in treatments])
        return mixing, said, lab

    return make


def test_the_whole_model_is_tried_in_each_treatment_before_layers_are_looked_at_one_by_one(
    explored: Callable[..., tuple[Mixing, Told, Laboratory]],
) -> None:
    mixing, said, _ = explored(HALF, MOST)
    wholes = [point for point in mixing.points.values() if point.whole]
    assert [point.whole for point in wholes] == [HALF.name, MOST.name]
    assert all(point.seconds is not None for point in wholes)
    best = mixing.best_whole()
    assert best is not None
    assert best.whole == HALF.name  # half of the neurons do nothing; more would be missed
    judged = max(place for place, step in enumerate(said) if step.startswith("one treatment everywhere"))
    assert judged < said.first("the best so far") < said.first("compiling 4 kinds of layers")
    assert said.first("the best so far") < said.first("sensitivity")
    assert all(not row.problem for row in mixing.rows)


def test_with_time_for_the_whole_model_only_it_is_judged_and_timed_in_every_treatment_and_no_layer_is(
    explored: Callable[..., tuple[Mixing, Told, Laboratory]],
) -> None:
    # Of ten hours, a last word takes four and a half: there is time for one, and not for a mix to have its own.
    mixing, said, lab = explored(HALF, MOST, package_s=4.5 * HOUR, limit_s=10 * HOUR)
    assert times_of(lab).parts < time.monotonic() < times_of(lab).wholes
    assert [point.whole for point in mixing.points.values() if point.recipe] == [HALF.name, MOST.name]
    assert mixing.best_whole() is not None
    assert {row.problem for row in mixing.rows} == {"not measured"}
    assert not any(step.startswith(("sensitivity", "mixes")) for step in said)


def test_without_time_for_one_treatment_of_the_whole_model_none_is_begun(
    explored: Callable[..., tuple[Mixing, Told, Laboratory]],
) -> None:
    mixing, said, _ = explored(HALF, MOST, package_s=HOUR, limit_s=HOUR)
    assert list(mixing.points) == [()]
    assert mixing.left_out == {HALF.name: "no time was left", MOST.name: "no time was left"}
    assert not any(step.startswith("compiling") for step in said)


def test_what_makes_the_whole_model_slower_is_not_judged_nor_are_layers_in_which_it_saves_nothing(
    explored: Callable[..., tuple[Mixing, Told, Laboratory]],
) -> None:
    # Uncompiled, int8 is slower on small layers.
    mixing, said, _ = explored(INT8, small=True)
    assert list(mixing.points) == [()]
    assert "ms for the whole model, and" in mixing.left_out[INT8.name]
    assert {row.problem for row in mixing.rows} == {"saves no time"}
    assert not any(step.startswith(("sensitivity", "one treatment everywhere")) for step in said)


def test_an_artifact_that_cannot_be_timed_takes_no_other_with_it(
    explored: Callable[..., tuple[Mixing, Told, Laboratory]], tmp_path: Path
) -> None:
    mixing, _, lab = explored(HALF)
    builder = Builder(lab.setting, tmp_path, tmp_path / "calibration.npz", (1,), lambda _: None, key=tmp_path / "key")
    broken = tmp_path / "no-artifact"
    try_whole_only(lab, mixing, builder, broken, [SPARSE])
    assert str(broken) in mixing.left_out[SPARSE.name]
    held_out = HeldOut(find_evaluation("accuracy"), lab.model, lab.setting.calibration, 0)
    bench = Bench(lab, builder, held_out, broken, Interval(90.0, 85.0, 95.0, 0.95), 10.0)
    verdict = choose(bench, mixing, lambda _: None)
    assert verdict.point is None
    assert f"{HALF.name} everywhere: its artifact cannot be timed: " in verdict.reason
