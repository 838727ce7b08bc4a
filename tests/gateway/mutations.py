"""Requests that are wrong in many ways, drawn from valid ones: deterministic, for hypothesis."""

from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protos import control_pb2
from protos import inference_pb2 as pb
from tests.gateway.backend import spec
from worker.nouns import ELEMENT_BYTES

TENSORS = [
    spec("x", "FP32", ("batch", "n")),
    spec("text", "BYTES", ("batch",)),
    spec("flag", "BOOL", ("batch", 2)),
]
AXES = [control_pb2.Axis(name="n", minimum=1, maximum=8)]
names = st.sampled_from(["x", "text", "flag"]) | st.sampled_from(["", "X", "x\0", "\u00e9" * 50, "n" * 5000])
datatypes = st.sampled_from([*ELEMENT_BYTES, "BYTES", "", "fp32", "FP8"])
sizes = st.integers(0, 4) | st.sampled_from([-1, 8, 9, 16, 17, 1 << 31, 1 << 62, -(1 << 63), (1 << 63) - 1])
shapes = st.lists(sizes, max_size=4)
numbers = st.integers(-(1 << 31), (1 << 31) - 1)
parameters = st.dictionaries(
    st.sampled_from(["priority", "timeout", "sequence_id", "shared_memory_region", "classification", "other", ""]),
    st.builds(pb.InferParameter, int64_param=st.integers(-2, 10_000_000))
    | st.builds(pb.InferParameter, bool_param=st.booleans())
    | st.builds(pb.InferParameter, string_param=st.text(max_size=5))
    | st.builds(pb.InferParameter, double_param=st.floats())
    | st.just(pb.InferParameter()),
    max_size=2,
)
contents = st.builds(
    pb.InferTensorContents,
    fp32_contents=st.lists(st.floats(width=32), max_size=4),
    int_contents=st.lists(numbers, max_size=1),
    bytes_contents=st.lists(st.binary(max_size=4), max_size=3),
    bool_contents=st.lists(st.booleans(), max_size=4),
)
raws = st.binary(max_size=24) | st.sampled_from([bytes(4), bytes(8), b"\xff\xff\xff\xff", b"\3\0\0\0a\0b", bytes(32)])


def valid(*, typed: bool) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name="echo", id="7")
    request.inputs.add(name="x", datatype="FP32", shape=[2, 2])
    request.inputs.add(name="text", datatype="BYTES", shape=[2])
    request.inputs.add(name="flag", datatype="BOOL", shape=[2, 2])
    request.parameters["priority"].uint64_param = 1
    request.outputs.add(name="text")
    request.outputs.add(name="x")
    if typed:
        request.inputs[0].contents.fp32_contents.extend([1, 2, 3, 4])
        request.inputs[1].contents.bytes_contents.extend([b"a\0b", b""])
        request.inputs[2].contents.bool_contents.extend([True, False, True, True])
    else:
        request.raw_input_contents.extend([bytes(16), b"\3\0\0\0a\0b\0\0\0\0", b"\1\0\1\1"])
    return request


Draw = st.DrawFn
Input = pb.ModelInferRequest.InferInputTensor


def _rename(draw: Draw, _: pb.ModelInferRequest, one: Input) -> None:
    one.name = draw(names)


def _retype(draw: Draw, _: pb.ModelInferRequest, one: Input) -> None:
    one.datatype = draw(datatypes)


def _reshape(draw: Draw, _: pb.ModelInferRequest, one: Input) -> None:
    one.shape[:] = draw(shapes)


def _resize(draw: Draw, _: pb.ModelInferRequest, one: Input) -> None:
    if one.shape:
        one.shape[draw(st.integers(0, len(one.shape) - 1))] = draw(sizes)


def _type_contents(draw: Draw, _: pb.ModelInferRequest, one: Input) -> None:
    one.contents.CopyFrom(draw(contents))


def _clear_contents(_: Draw, __: pb.ModelInferRequest, one: Input) -> None:
    one.ClearField("contents")


def _append_raw(draw: Draw, request: pb.ModelInferRequest, _: Input) -> None:
    request.raw_input_contents.append(draw(raws))


def _change_raw(draw: Draw, request: pb.ModelInferRequest, _: Input) -> None:
    if request.raw_input_contents:
        request.raw_input_contents[draw(st.integers(0, len(request.raw_input_contents) - 1))] = draw(raws)


def _repeat_input(_: Draw, request: pb.ModelInferRequest, one: Input) -> None:
    request.inputs.add().CopyFrom(one)


def _remove_input(_: Draw, request: pb.ModelInferRequest, one: Input) -> None:
    request.inputs.remove(one)


def _ask_for_output(draw: Draw, request: pb.ModelInferRequest, _: Input) -> None:
    request.outputs.add(name=draw(names))


def _set_parameters(draw: Draw, request: pb.ModelInferRequest, one: Input) -> None:
    message: Any = draw(st.sampled_from([request, one, *request.outputs]))
    for name, parameter in draw(parameters).items():
        message.parameters[name].CopyFrom(parameter)


def _name_another_model(draw: Draw, request: pb.ModelInferRequest, _: Input) -> None:
    request.model_name = draw(names)
    request.model_version = draw(st.sampled_from(["", "1", "2", "-1", "x"]))


CHANGES = (
    *(_rename, _retype, _reshape, _resize, _type_contents, _clear_contents, _append_raw, _change_raw),
    *(_repeat_input, _remove_input, _ask_for_output, _set_parameters, _name_another_model),
)


@st.composite
def structured(draw: Draw) -> bytes:
    """A valid request with one to three things about it changed."""
    request = valid(typed=draw(st.booleans()))
    for _ in range(draw(st.integers(1, 3))):
        one = request.inputs[draw(st.integers(0, len(request.inputs) - 1))] if request.inputs else request.inputs.add()
        draw(st.sampled_from(CHANGES))(draw, request, one)
    return request.SerializeToString()


@st.composite
def bytewise(draw: st.DrawFn) -> bytes:
    """The bytes of a valid request with one to four of them flipped, cut, repeated or put in."""
    message = bytearray(valid(typed=draw(st.booleans())).SerializeToString())
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, max(0, len(message) - 1)))
        end = min(len(message), start + draw(st.integers(0, 12)))
        change = draw(st.integers(0, 4))
        if change == 0 and message:
            message[start] ^= draw(st.integers(1, 255))
        elif change == 1:
            del message[start:end]
        elif change == 2:
            message[start:start] = message[start:end]
        elif change == 3:
            message[start:start] = draw(st.binary(max_size=8))
        else:
            del message[start:]
    return bytes(message)


def for_each(strategy: st.SearchStrategy[bytes], count: int, run: Callable[[bytes], None]) -> None:
    """Runs `run` with `count` requests of the strategy, the same ones every time."""
    chosen = settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
    )

    def each(message: bytes) -> None:
        run(message)

    check: Any = chosen(given(strategy)(each))
    check()
