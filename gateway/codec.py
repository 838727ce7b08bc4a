"""Requests to tensors, tensors to responses. Protobuf stops here.

Input bytes are passed on as they came. A response is put together from protobuf's own bytes for the small fields and
from the tensors' bytes: protobuf would copy a large tensor twice, into memory it has just asked for.
"""

from collections.abc import Sequence
from typing import Final

from google.protobuf.message import DecodeError

from gateway.contents import typed_bytes
from gateway.contract import Contract, Shape
from gateway.entries import too_much
from gateway.errors import quoted
from gateway.parameters import check_input_parameters, check_output_parameters
from protos import inference_pb2 as pb
from worker.errors import Internal, InvalidRequest
from worker.nouns import Tensor

_LARGE_BYTES: Final = 64 << 10
"""What a smaller request holds is not counted before it is parsed: little can come of it."""

_RAW_OUTPUT_TAG: Final = bytes((pb.ModelInferResponse.RAW_OUTPUT_CONTENTS_FIELD_NUMBER << 3 | 2,))
"""How protobuf's wire format begins an entry of raw_output_contents: field number and "length follows"."""


def parse_infer(message: bytes) -> pb.ModelInferRequest:
    """Raises `InvalidRequest` where the message is not protobuf, one of its strings is not UTF-8, or it has more of
    small things than any model takes.
    """
    if len(message) > _LARGE_BYTES and (what := too_much(message)):
        raise InvalidRequest(f"the request has {what}")
    try:
        return pb.ModelInferRequest.FromString(message)
    except DecodeError as error:
        raise InvalidRequest(
            f"the message is not a ModelInferRequest, or a name in it is not UTF-8: {error}"
        ) from error


def decode(request: pb.ModelInferRequest, contract: Contract) -> tuple[Tensor, ...]:
    """The request's tensors, in the order of the model's signature. Raises `InvalidRequest`, `Unsupported`."""
    raw = request.raw_input_contents
    inputs = request.inputs
    positions = [-1] * len(contract.rules)
    shapes: list[Shape | None] = [None] * len(contract.rules)
    for position, given in enumerate(inputs):
        rule = contract.rule(given.name)
        if given.parameters:
            check_input_parameters(given.parameters, rule.label)
        if positions[rule.place] >= 0:
            raise InvalidRequest(f"{rule.label} is given twice")
        shape = tuple(given.shape)
        rule.check(given.datatype, shape)
        positions[rule.place] = position
        shapes[rule.place] = shape
    known = contract.complete(shapes)
    contract.check_axes(known)
    if raw and len(raw) != len(inputs):
        raise InvalidRequest(
            f"raw_input_contents for model {quoted(contract.model)} has {len(raw)} entries, expected {len(inputs)}: "
            f"one for each of {', '.join(quoted(rule.name) for rule in contract.rules)}"
        )
    tensors = []
    for rule, position, shape in zip(contract.rules, positions, known, strict=True):
        given = inputs[position]
        if raw:
            if given.HasField("contents"):
                raise InvalidRequest(
                    f"contents field must not be specified when using raw_input_contents for {rule.label[6:]}"
                )
            data = raw[position]
        else:
            data = typed_bytes(given.contents, rule, shape)
        rule.check_data(shape, data)
        tensors.append(Tensor(rule.name, rule.datatype, shape, data))
    return tuple(tensors)


def wanted_outputs(request: pb.ModelInferRequest, contract: Contract) -> Sequence[str]:
    """Names of the outputs that the client asked for, in its order; all of them where it named none."""
    if not request.outputs:
        return contract.outputs
    names = [output.name for output in request.outputs]
    contract.check_outputs(names)
    for output in request.outputs:
        if output.parameters:
            check_output_parameters(
                output.parameters, f"output {quoted(output.name)} for model {quoted(contract.model)}"
            )
    return names


def encode(model: str, version: str, request_id: str, tensors: Sequence[Tensor], wanted: Sequence[str]) -> bytes:
    """A serialized ModelInferResponse with the wanted tensors, raw. Raises `Internal` where one is missing."""
    given = {tensor.name: tensor for tensor in tensors}
    response = pb.ModelInferResponse(model_name=model, model_version=version, id=request_id)
    parts: list[bytes | memoryview] = [b""]
    for name in wanted:
        tensor = given.get(name)
        if tensor is None:
            raise Internal(f"the model gave no output {quoted(name)}")
        response.outputs.add(name=name, datatype=tensor.datatype, shape=tensor.shape)
        data = tensor.data
        parts.append(_RAW_OUTPUT_TAG + _varint(len(data) if isinstance(data, bytes) else data.nbytes))
        parts.append(data)
    parts[0] = response.SerializeToString()
    return b"".join(parts)


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 127:
        encoded.append(number & 127 | 128)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
