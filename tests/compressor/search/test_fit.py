import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from compressor.model import Input, Model
from compressor.search.budget import ERROR, Budget, level_of_look, read_budget
from compressor.search.fit import Anchor, drop_for_harm, harm_budget, repaired, scaled_gains
from compressor.search.objective import Objective, read_objective
from worker.errors import InvalidRequest
from worker.nouns import Axis


def test_a_drop_is_expected_in_proportion_to_harm() -> None:
    anchors = [Anchor("a", 1.0, 0.2), Anchor("b", 2.0, 0.4)]
    assert drop_for_harm(anchors) == pytest.approx(0.2)
    assert harm_budget(anchors, 0.5) == pytest.approx(2.5)
    assert harm_budget([Anchor("a", 1.0, -0.1)], 0.5) == math.inf


def test_gains_are_scaled_so_that_together_they_are_what_the_whole_model_gained() -> None:
    gains = {("g", "int8"): 1.0, ("h", "int8"): 3.0, ("g", "other"): 2.0}
    scaled = scaled_gains(gains, {"int8": 8.0}, baseline=10.0)
    assert scaled == pytest.approx({("g", "int8"): 0.5, ("h", "int8"): 1.5, ("g", "other"): 2.0}, abs=0.011)


def test_what_made_the_whole_model_slower_gains_nothing() -> None:
    assert scaled_gains({("g", "a"): 1.0}, {"a": 12.0}, baseline=10.0) == {("g", "a"): 0.0}


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=3), min_size=1, max_size=4),
    st.integers(0, 30),
    st.data(),
)
def test_a_repair_fits_or_nothing_does_and_it_never_does_more_harm(
    groups: list[list[tuple[int, int]]], most: int, data: st.DataObject
) -> None:
    costs = [[float(cost) for cost, _ in group] for group in groups]
    harms = [[float(harm) for _, harm in group] for group in groups]
    choices = [data.draw(st.integers(0, len(group) - 1)) for group in groups]
    found = repaired(choices, costs, harms, most)
    if found is None:
        assert all(
            sum(harms[g][place] for g, place in enumerate(every)) > most
            for every in itertools.product(*(range(len(group)) for group in groups))
        )
        return
    assert sum(harms[g][place] for g, place in enumerate(found)) <= most
    assert all(harms[g][new] <= harms[g][old] for g, (new, old) in enumerate(zip(found, choices, strict=True)))


def test_all_looks_together_err_no_more_than_is_told() -> None:
    assert level_of_look(1) == pytest.approx(0.95)
    assert sum((1 - level_of_look(look)) / 2 for look in range(1, 30)) <= ERROR


def test_a_budget_is_in_the_figures_unit_or_a_share_of_it() -> None:
    assert read_budget("0.5") == Budget(0.5)
    assert read_budget("1%").allowed(80.0) == pytest.approx(0.8)
    for text in ("", "-1", "half", "1 %%", "nan"):
        with pytest.raises(InvalidRequest, match="max-drop"):
            read_budget(text)


def test_objectives_are_read_or_refused_with_the_nearest() -> None:
    assert read_objective("latency@8x64") == Objective("latency", 8, 64)
    for text, told in [
        ("latncy@8", "latency"),
        ("size@3", "no batch"),
        ("latency@0", "start at 1"),
        ("8x64", "expected"),
    ]:
        with pytest.raises(InvalidRequest, match=told):
            read_objective(text)


def bounded(*names: str, **sizes: tuple[int, int | None]) -> Model:
    """One input with these named axes, of these bounds."""
    axes = tuple(Axis(name, *bounds) for name, bounds in sizes.items())
    return Model(nn.Identity(), (Input("x", torch.zeros([2] * len(names) + [3]), (*names, None)),), axes=axes)


@pytest.mark.parametrize(
    ("text", "model", "told"),
    [
        ("latency@8x64", bounded("batch", "length"), "latency@8x64"),
        ("latency@8", bounded("batch", "length", length=(1, 16)), "latency@8x16"),
        ("latency@8", bounded("batch", "tall", "wide", wide=(80, None)), "latency@8x64x80"),
        ("throughput@32", bounded("batch"), "throughput@32"),
        ("throughput", bounded("batch", batch=(4, 8)), "throughput@4"),
        ("latency@1", bounded(), "latency"),
        ("latency@1x7", bounded("length"), "latency@1x7"),
        ("size", bounded("batch"), "size"),
    ],
)
def test_an_objective_is_told_as_what_is_timed(text: str, model: Model, told: str) -> None:
    fitted = read_objective(text).fitted(model)
    assert fitted.told(model) == told
    assert fitted.rows == fitted.sizes(model).get("batch", 1)


@pytest.mark.parametrize(
    ("text", "model", "told"),
    [
        ("latency@8x64", bounded("batch"), "objective 'latency@8x64': the model has no axis beside the batch .* 64"),
        ("latency@8x64", bounded("batch"), "say latency@8$"),
        ("latency@8", bounded("length"), "no axis 'batch', so no batch of 8; say latency$"),
        ("latency@8x9", bounded("length"), "no axis 'batch', so no batch of 8; say latency@1x9$"),
        ("latency@9x4", bounded("batch", "length", batch=(1, 8)), "axis 'batch' takes 1 to 8, not 9; ask for a size"),
        ("latency@1", bounded("batch", batch=(2, None)), "axis 'batch' takes at least 2, not 1"),
        ("throughput@2x17", bounded("batch", "length", length=(1, 16)), "axis 'length' takes 1 to 16, not 17"),
    ],
)
def test_a_size_that_the_model_does_not_take_is_refused_with_its_axis_and_bounds(
    text: str, model: Model, told: str
) -> None:
    with pytest.raises(InvalidRequest, match=told):
        read_objective(text).fitted(model)
