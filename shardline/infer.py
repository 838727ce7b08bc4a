"""`shardline infer`: one request over the Open Inference Protocol, as any client would send it."""

import json
import sys
import time
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

from protos import inference_pb2
from shardline import exits
from worker.errors import InvalidRequest, Unavailable, from_code

SERVICE = "/inference.GRPCInferenceService/"
MAX_MESSAGE_BYTES = 2**31 - 1
SHOWN_VALUES = 8

DATATYPES: Mapping[str, str] = {
    "bool": "BOOL",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
}
DTYPES = {datatype: dtype for dtype, datatype in DATATYPES.items()}

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Answered:
    """outputs: by name; BYTES as an object array of bytes, BF16 as uint16."""

    version: str
    outputs: Mapping[str, Array]
    milliseconds: float


class InferClient:
    """One connection to a gateway. Calls raise ShardlineError."""

    def __init__(self, url: str) -> None:
        self._url = url
        bounds = [("grpc.max_receive_message_length", MAX_MESSAGE_BYTES), ("grpc.max_send_message_length", -1)]
        self._channel = grpc.insecure_channel(url, options=bounds)

    def __enter__(self) -> "InferClient":
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def text_input(self, model: str, version: str, timeout_s: float) -> str:
        """The name of the model's only BYTES input. Raises InvalidRequest where it has none or several."""
        request = inference_pb2.ModelMetadataRequest(name=model, version=version)
        metadata = self._call("ModelMetadata", request, inference_pb2.ModelMetadataResponse, timeout_s)
        names = [tensor.name for tensor in metadata.inputs if tensor.datatype == "BYTES"]
        if len(names) != 1 or len(metadata.inputs) != 1:
            takes = ", ".join(f"{tensor.name} ({tensor.datatype})" for tensor in metadata.inputs)
            raise InvalidRequest(
                f"--text needs a model with one BYTES input; {model} takes {takes}: use --input FILE.npz"
            )
        name: str = names[0]
        return name

    def infer(self, model: str, version: str, inputs: Mapping[str, Array], timeout_s: float) -> Answered:
        request = inference_pb2.ModelInferRequest(model_name=model, model_version=version)
        for name, array in inputs.items():
            datatype = datatype_of(name, array)
            request.inputs.add(name=name, datatype=datatype, shape=array.shape)
            request.raw_input_contents.append(pack_bytes(array) if datatype == "BYTES" else array.tobytes())
        began = time.perf_counter()
        reply = self._call("ModelInfer", request, inference_pb2.ModelInferResponse, timeout_s)
        took = (time.perf_counter() - began) * 1e3
        outputs = {
            output.name: unpack(output.datatype, tuple(output.shape), raw)
            for output, raw in zip(reply.outputs, reply.raw_output_contents, strict=True)
        }
        return Answered(reply.model_version, outputs, took)

    def _call(self, method: str, request: Any, reply: Any, timeout_s: float) -> Any:
        call = self._channel.unary_unary(SERVICE + method, type(request).SerializeToString, reply.FromString)
        try:
            return call(request, timeout=timeout_s)
        except grpc.RpcError as error:
            code, details = error.code(), error.details() or "no details"
            if code is grpc.StatusCode.UNAVAILABLE:
                raise Unavailable(f"{self._url}: {details}") from error
            raise from_code(code.value[0], details) from error


def datatype_of(name: str, array: Array) -> str:
    """The protocol's name for the array's type. Raises InvalidRequest."""
    if array.dtype.kind in "SUO":
        return "BYTES"
    try:
        return DATATYPES[array.dtype.name]
    except KeyError:
        raise InvalidRequest(f"input {name!r}: the protocol has no datatype for {array.dtype}") from None


def pack_bytes(array: Array) -> bytes:
    """Elements as 4-byte little-endian lengths and bytes; text as UTF-8."""
    elements = [element.encode() if isinstance(element, str) else bytes(element) for element in array.flat]
    return b"".join(len(element).to_bytes(4, "little") + element for element in elements)


def unpack(datatype: str, shape: tuple[int, ...], raw: bytes) -> Array:
    if datatype != "BYTES":
        dtype = np.dtype("uint16" if datatype == "BF16" else DTYPES[datatype]).newbyteorder("<")
        return np.frombuffer(raw, dtype).reshape(shape)
    elements, at = [], 0
    while at < len(raw):
        length = int.from_bytes(raw[at : at + 4], "little")
        elements.append(raw[at + 4 : at + 4 + length])
        at += 4 + length
    array = np.empty(len(elements), object)
    array[:] = elements
    return array.reshape(shape)


def run(
    url: str,
    target: str,
    text: Sequence[str] | None,
    file: Path | None,
    *,
    out: Path | None,
    as_json: bool,
    timeout_s: float,
) -> int:
    model, _, version = target.partition("/")
    with InferClient(url) as client:
        if text is not None:
            inputs = {client.text_input(model, version, timeout_s): np.array([line.encode() for line in text], object)}
        else:
            inputs = read_npz(file or Path())
        answered = client.infer(model, version, inputs, timeout_s)
    if out is not None:
        _write_npz(out, answered.outputs)
    sys.stdout.write(as_line(model, answered) if as_json else as_text(model, answered))
    return exits.OK


def read_npz(path: Path) -> dict[str, Array]:
    """Raises InvalidRequest where it is not a file of plain arrays."""
    try:
        arrays = np.load(path, allow_pickle=False)
        if not isinstance(arrays, np.lib.npyio.NpzFile):
            raise InvalidRequest(f"{path}: expected an .npz file with an array for each input, under its name")
        with arrays:
            return {name: np.ascontiguousarray(arrays[name]) for name in arrays.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InvalidRequest(f"{path}: not an .npz file of plain arrays: {error}") from error


def _write_npz(path: Path, arrays: Mapping[str, Array]) -> None:
    """Raises OSError that names the file."""
    try:
        np.savez(path, allow_pickle=False, **{name: _plain(array) for name, array in arrays.items()})
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def as_line(model: str, answered: Answered) -> str:
    outputs = {
        name: {"shape": list(array.shape), "data": [_json_value(value) for value in array.flat]}
        for name, array in answered.outputs.items()
    }
    facts = {"model": model, "version": answered.version, "ms": round(answered.milliseconds, 3), "outputs": outputs}
    return json.dumps(facts) + "\n"


def as_text(model: str, answered: Answered) -> str:
    lines = [f"{model}/{answered.version}  {answered.milliseconds:.1f} ms"]
    for name, array in answered.outputs.items():
        shown = ", ".join(_shown(value) for value in array.flat[:SHOWN_VALUES])
        more = ", …" if array.size > SHOWN_VALUES else ""
        lines.append(f"{name}  {array.dtype.name}{list(array.shape)}  [{shown}{more}]")
    return "\n".join(lines) + "\n"


def _plain(array: Array) -> Array:
    return array.astype(bytes) if array.dtype == object else array


def _json_value(value: Any) -> Any:
    return value.decode(errors="replace") if isinstance(value, bytes) else value.item()


def _shown(value: Any) -> str:
    return repr(value.decode(errors="replace")) if isinstance(value, bytes) else f"{value.item():.6g}"
