import pytest

from gateway.parameters import (
    DEFAULTS,
    Options,
    check_input_parameters,
    check_output_parameters,
    options,
)
from protos import inference_pb2 as pb
from worker.errors import InvalidRequest, Unsupported


def whole(number: int) -> pb.InferParameter:
    return pb.InferParameter(int64_param=number)


def test_a_request_without_parameters_is_of_the_middle_level() -> None:
    assert options({}) is DEFAULTS
    assert Options(priority=4, timeout_s=None) == DEFAULTS


@pytest.mark.parametrize(("level", "priority"), [(1, 0), (2, 1), (9, 8), (0, 4), (10, 4), ((1 << 64) - 1, 4)])
def test_level_one_is_served_first_and_an_unknown_level_is_the_default(level: int, priority: int) -> None:
    assert options({"priority": pb.InferParameter(uint64_param=level)}).priority == priority


def test_a_timeout_is_in_microseconds_and_zero_is_none() -> None:
    assert options({"timeout": whole(1_500_000)}).timeout_s == 1.5
    assert options({"timeout": whole(0)}).timeout_s is None


@pytest.mark.parametrize("name", ["priority", "timeout"])
@pytest.mark.parametrize(
    "parameter",
    [
        whole(-1),
        pb.InferParameter(string_param="1"),
        pb.InferParameter(bool_param=True),
        pb.InferParameter(double_param=1.0),
        pb.InferParameter(),
    ],
)
def test_priority_and_timeout_are_whole_numbers(name: str, parameter: pb.InferParameter) -> None:
    with pytest.raises(InvalidRequest, match=f"parameter '{name}' is a whole number, 0 or more"):
        options({name: parameter})


@pytest.mark.parametrize(
    ("name", "parameter"),
    [
        ("sequence_id", whole(7)),
        ("sequence_id", pb.InferParameter(string_param="a")),
        ("sequence_start", pb.InferParameter(bool_param=True)),
    ],
)
def test_sequences_are_not_supported(name: str, parameter: pb.InferParameter) -> None:
    with pytest.raises(Unsupported, match=f"parameter '{name}': this server keeps no sequences"):
        options({name: parameter})


def test_a_sequence_parameter_that_says_no_sequence_is_nothing_to_refuse() -> None:
    assert options({"sequence_id": whole(0), "sequence_end": pb.InferParameter(bool_param=False)}) == DEFAULTS


def test_what_concerns_streamed_responses_only_is_let_through() -> None:
    assert options({"triton_enable_empty_final_response": pb.InferParameter(bool_param=True)}) == DEFAULTS


@pytest.mark.parametrize("name", ["temperature", "headers", "content_type", "binary_data_output", ""])
def test_a_parameter_of_the_clients_own_changes_nothing(name: str) -> None:
    assert options({name: whole(1), "timeout": whole(1_000_000)}) == Options(timeout_s=1.0)


def test_a_name_that_triton_keeps_for_itself_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="parameter 'triton_other': names that begin with 'triton_' are Triton's"):
        options({"triton_other": whole(1)})


@pytest.mark.parametrize("content_type", ["np", "str", "pd", "image/jpeg"])
def test_a_content_type_that_says_how_to_hold_the_values_changes_nothing(content_type: str) -> None:
    given = {"content_type": pb.InferParameter(string_param=content_type)}
    assert options(given) == DEFAULTS
    check_input_parameters(given, "input 'x'")
    check_output_parameters(given, "output 'y'")


def test_base64_is_refused_wherever_it_is_asked_for() -> None:
    given = {"content_type": pb.InferParameter(string_param="base64")}
    says = "content_type base64: this server neither reads nor writes base64"
    with pytest.raises(Unsupported, match=f"the request: {says}"):
        options(given)
    with pytest.raises(Unsupported, match=f"input 'x': {says}"):
        check_input_parameters(given, "input 'x'")
    with pytest.raises(Unsupported, match=f"output 'y': {says}"):
        check_output_parameters(given, "output 'y'")


@pytest.mark.parametrize("classes", [pb.InferParameter(int64_param=0), pb.InferParameter()])
def test_an_output_with_no_classes_asked_for_is_nothing_to_refuse(classes: pb.InferParameter) -> None:
    check_output_parameters({"classification": classes}, "output 'y'")
