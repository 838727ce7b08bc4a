"""Requests as our own messages, and contracts to check them with."""

from collections.abc import Mapping, Sequence

from gateway.contract import Contract
from protos import inference_pb2 as pb
from worker.nouns import Axis, Signature, TensorSpec

SPEC = TensorSpec("x", "FP32", ("batch", 4))
ROW = bytes(16)


def contract(
    *inputs: TensorSpec,
    outputs: Sequence[TensorSpec] = (SPEC,),
    axes: Sequence[Axis] = (),
    max_batch_rows: int = 16,
) -> Contract:
    return Contract("echo", Signature(inputs or (SPEC,), tuple(outputs), tuple(axes)), max_batch_rows)


def given(
    name: str = "x",
    shape: Sequence[int] = (1, 4),
    datatype: str = "FP32",
    contents: pb.InferTensorContents | None = None,
    parameters: Mapping[str, pb.InferParameter] | None = None,
) -> pb.ModelInferRequest.InferInputTensor:
    return pb.ModelInferRequest.InferInputTensor(
        name=name, datatype=datatype, shape=shape, contents=contents, parameters=parameters
    )


def infer_request(
    *inputs: pb.ModelInferRequest.InferInputTensor, raw: Sequence[bytes] = (), outputs: Sequence[str] = ()
) -> pb.ModelInferRequest:
    return pb.ModelInferRequest(
        model_name="echo",
        inputs=inputs,
        raw_input_contents=raw,
        outputs=[pb.ModelInferRequest.InferRequestedOutputTensor(name=name) for name in outputs],
    )


REFUSED: list[tuple[str, pb.ModelInferRequest, str]] = [
    ("an unknown input", infer_request(given("y"), raw=[ROW]), r"unknown input 'y' for model 'echo'; it takes 'x'"),
    (
        "an input without a name",
        infer_request(given(""), raw=[ROW]),
        r"an input without a name for model 'echo'; it takes 'x'",
    ),
    ("a missing input", infer_request(), r"input 'x' for model 'echo' is missing"),
    (
        "an input given twice",
        infer_request(given(), given(), raw=[ROW, ROW]),
        r"input 'x' for model 'echo' is given twice",
    ),
    (
        "a wrong datatype",
        infer_request(given(datatype="FP16"), raw=[ROW]),
        r"input 'x' .*datatype 'FP16', expected FP32",
    ),
    (
        "an unknown datatype",
        infer_request(given(datatype="FP8"), raw=[ROW]),
        r"input 'x' .*datatype 'FP8', expected FP32",
    ),
    (
        "a wrong rank",
        infer_request(given(shape=(4,)), raw=[ROW]),
        r"input 'x' .*1 dimensions, expected 2: \[batch, 4\]",
    ),
    ("a scalar", infer_request(given(shape=()), raw=[ROW]), r"input 'x' .*0 dimensions, expected 2"),
    (
        "a wrong fixed dimension",
        infer_request(given(shape=(1, 5)), raw=[bytes(20)]),
        r"input 'x' .*dimension 1 is 5, must be 4",
    ),
    ("a negative dimension", infer_request(given(shape=(-1, 4)), raw=[ROW]), r"input 'x' .*negative"),
    ("two negative dimensions", infer_request(given(shape=(-1, -4)), raw=[ROW]), r"input 'x' .*negative"),
    ("no rows", infer_request(given(shape=(0, 4)), raw=[b""]), r"input 'x' .*0 rows came, at least 1 must"),
    (
        "too many rows",
        infer_request(given(shape=(17, 4)), raw=[bytes(272)]),
        r"input 'x' .*17 rows came, at most 16 may",
    ),
    ("an enormous shape", infer_request(given(shape=(1 << 62, 4)), raw=[ROW]), r"input 'x' .*rows came, at most 16"),
    (
        "too few bytes",
        infer_request(given(), raw=[bytes(15)]),
        r"input 'x' .*15 bytes came, expected 16: shape \[1, 4\] of FP32",
    ),
    ("too many bytes", infer_request(given(), raw=[bytes(17)]), r"input 'x' .*17 bytes came, expected 16"),
    ("no data", infer_request(given()), r"input 'x' .*has no data"),
    (
        "more raw entries than inputs",
        infer_request(given(), raw=[ROW, ROW]),
        r"2 entries, expected 1: one for each of 'x'",
    ),
    (
        "raw and typed data together",
        infer_request(given(contents=pb.InferTensorContents(fp32_contents=[1] * 4)), raw=[ROW]),
        r"contents field must not be specified when using raw_input_contents for 'x' for model 'echo'",
    ),
    (
        "typed data in another type's field",
        infer_request(given(contents=pb.InferTensorContents(fp64_contents=[1] * 4))),
        r"input 'x' .*FP32 elements belong in fp32_contents; fp64_contents came",
    ),
    (
        "typed data in two fields",
        infer_request(given(contents=pb.InferTensorContents(fp32_contents=[1] * 4, int_contents=[1] * 4))),
        r"input 'x' .*FP32 elements belong in fp32_contents; int_contents came",
    ),
    (
        "too few typed elements",
        infer_request(given(contents=pb.InferTensorContents(fp32_contents=[1] * 3))),
        r"input 'x' .*3 elements came in fp32_contents, expected 4: shape \[1, 4\] of FP32",
    ),
]
"""Bad requests for `contract()`: what is wrong, the request, and what the message says."""
