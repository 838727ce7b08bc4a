import pytest

from tests.gateway.messages import contract
from worker.errors import InvalidRequest
from worker.nouns import Axis, TensorSpec

IDS = TensorSpec("ids", "INT64", ("batch", "sequence"))
MASK = TensorSpec("mask", "INT64", ("batch", "sequence"))
SEQUENCE = Axis("sequence", 2, 128)


@pytest.mark.parametrize("size", [2, 128])
def test_a_dynamic_axis_may_be_as_small_and_as_large_as_its_bounds(size: int) -> None:
    contract(IDS, axes=[SEQUENCE]).check_axes([(1, size)])


@pytest.mark.parametrize("size", [0, 1, 129, 1 << 62])
def test_a_dynamic_axis_outside_its_bounds_is_refused(size: int) -> None:
    with pytest.raises(
        InvalidRequest, match=rf"input 'ids' .*'sequence' \(dimension 1\) is {size}; .*least 2, at most 128"
    ):
        contract(IDS, axes=[SEQUENCE]).check_axes([(1, size)])


def test_an_axis_without_an_upper_bound_says_so() -> None:
    with pytest.raises(InvalidRequest, match="at least 3, no upper bound"):
        contract(IDS, axes=[Axis("sequence", 3)]).check_axes([(1, 2)])


def test_an_axis_of_which_nothing_is_said_holds_at_least_one() -> None:
    with pytest.raises(InvalidRequest, match="at least 1, no upper bound"):
        contract(IDS).check_axes([(1, 0)])
    contract(IDS).check_axes([(1, 1 << 40)])


def test_two_inputs_that_disagree_on_a_named_axis_are_refused() -> None:
    both = contract(IDS, MASK, axes=[SEQUENCE])
    both.check_axes([(2, 8), (2, 8)])
    with pytest.raises(InvalidRequest, match=r"input 'mask' .*'sequence' \(dimension 1\) is 9 but 8 in input 'ids'"):
        both.check_axes([(2, 8), (2, 9)])
    with pytest.raises(InvalidRequest, match=r"input 'mask' .*'batch' \(dimension 0\) is 3 but 2 in input 'ids'"):
        both.check_axes([(2, 8), (3, 8)])


def test_one_input_may_have_the_same_axis_twice() -> None:
    square = contract(TensorSpec("x", "FP32", ("n", "n")))
    square.check_axes([(3, 3)])
    with pytest.raises(InvalidRequest, match=r"'n' .* is 4 but 3"):
        square.check_axes([(3, 4)])


def test_the_rows_of_a_request_are_bounded_by_the_models_limit_and_by_its_batch_axis() -> None:
    contract(IDS, axes=[Axis("batch", 1, 8)], max_batch_rows=0).check_axes([(8, 1)])
    with pytest.raises(InvalidRequest, match="9 rows came, at most 8 may; send several requests"):
        contract(IDS, axes=[Axis("batch", 1, 8)], max_batch_rows=32).check_axes([(9, 1)])
    with pytest.raises(InvalidRequest, match="5 rows came, at most 4 may"):
        contract(IDS, axes=[Axis("batch", 1, 8)], max_batch_rows=4).check_axes([(5, 1)])
    with pytest.raises(InvalidRequest, match="1 rows came, at least 2 must"):
        contract(IDS, axes=[Axis("batch", 2, 8)]).check_axes([(1, 1)])


def test_a_model_without_inputs_takes_a_request_without_inputs() -> None:
    nothing = contract()
    nothing = type(nothing)("echo", type(nothing.signature)((), nothing.signature.outputs), 0)
    assert nothing.complete([]) == []
    with pytest.raises(InvalidRequest, match="unknown input 'x' for model 'echo'; it takes no inputs"):
        nothing.rule("x")


def test_a_long_name_is_shortened_in_the_message() -> None:
    with pytest.raises(InvalidRequest) as caught:
        contract().rule("n" * 1_000_000)
    assert len(str(caught.value)) < 200
