"""Requests as our own messages, and contracts to check them with."""

from collections.abc import Mapping, Sequence

from gateway.contract import Contract
from protos import inference_pb2 as pb
from worker.nouns import Axis, Signature, TensorSpec

SPEC = TensorSpec("x", "FP32", ("batch", 4))


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


def request(
    *inputs: pb.ModelInferRequest.InferInputTensor, raw: Sequence[bytes] = (), outputs: Sequence[str] = ()
) -> pb.ModelInferRequest:
    return pb.ModelInferRequest(
        model_name="echo",
        inputs=inputs,
        raw_input_contents=raw,
        outputs=[pb.ModelInferRequest.InferRequestedOutputTensor(name=name) for name in outputs],
    )
