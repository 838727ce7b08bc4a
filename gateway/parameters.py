"""Parameters of a request, an input and a requested output: what is understood, what is refused, what is passed over.

`priority` and `timeout` mean what they mean to Triton: level 1 is served first, 0 or a level that does not exist is the
default level; a timeout is in microseconds, 0 is none. What would make the answer another one than the client expects
is refused. All else is passed over: Triton and MLServer hand it to the model at most, and models here take none.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from gateway.errors import quoted
from protos import inference_pb2 as pb
from worker.errors import InvalidRequest, Unsupported

PRIORITY_LEVELS: Final = 9
DEFAULT_LEVEL: Final = 5

_SEQUENCE: Final = frozenset({"sequence_id", "sequence_start", "sequence_end"})
_WITHOUT_EFFECT_HERE: Final = frozenset({"triton_enable_empty_final_response"})
"""Concern only calls that stream their responses; clients set them on every request."""
_RESERVED: Final = "triton_"

Parameters = Mapping[str, pb.InferParameter]


@dataclass(frozen=True, slots=True)
class Options:
    """What a request asks for beside its tensors. `priority` 0 is served first; `timeout_s` None: none given."""

    priority: int = DEFAULT_LEVEL - 1
    timeout_s: float | None = None


DEFAULTS: Final = Options()


def options(parameters: Parameters) -> Options:
    """Raises `Unsupported` for sequences and encodings, `InvalidRequest` for what Triton reserves and a wrong value."""
    if not parameters:
        return DEFAULTS
    priority, timeout_s = DEFAULTS.priority, DEFAULTS.timeout_s
    for name in sorted(parameters):
        parameter = parameters[name]
        if name == "priority":
            level = _whole_number(name, parameter)
            priority = (level if 0 < level <= PRIORITY_LEVELS else DEFAULT_LEVEL) - 1
        elif name == "timeout":
            timeout_s = _whole_number(name, parameter) / 1e6 or None
        elif name in _SEQUENCE:
            if _value(parameter):
                raise Unsupported(f"parameter '{name}': this server keeps no sequences; send each request by itself")
        elif name.startswith(_RESERVED) and name not in _WITHOUT_EFFECT_HERE:
            raise InvalidRequest(
                f"parameter {quoted(name)}: names that begin with '{_RESERVED}' are Triton's own, and this one is "
                "unknown; leave it out"
            )
        else:
            _refuse_encoding(name, parameter, "the request")
    return Options(priority, timeout_s)


def check_input_parameters(parameters: Parameters, label: str) -> None:
    """Raises `Unsupported` for shared memory and encodings."""
    for name, parameter in parameters.items():
        _refuse_shared_memory(name, label)
        _refuse_encoding(name, parameter, label)


def check_output_parameters(parameters: Parameters, label: str) -> None:
    """Raises `Unsupported` for shared memory, encodings and classification."""
    for name, parameter in parameters.items():
        _refuse_shared_memory(name, label)
        _refuse_encoding(name, parameter, label)
        if name == "classification" and _value(parameter):
            raise Unsupported(f"{label}: this server does not classify; ask for the output and sort it")


def _refuse_encoding(name: str, parameter: pb.InferParameter, label: str) -> None:
    """MLServer's other content types say how to hold the same values; this one says that they are others."""
    if name == "content_type" and _value(parameter) == "base64":
        raise Unsupported(f"{label}: content_type base64: this server neither reads nor writes base64; use plain bytes")


def _refuse_shared_memory(name: str, label: str) -> None:
    if name.startswith("shared_memory_"):
        raise Unsupported(f"{label}: this server has no shared memory; send the tensor in the request")


def _value(parameter: pb.InferParameter) -> bool | int | float | str | None:
    choice = parameter.WhichOneof("parameter_choice")
    return None if choice is None else getattr(parameter, choice)


def _whole_number(name: str, parameter: pb.InferParameter) -> int:
    value = _value(parameter)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise InvalidRequest(f"parameter '{name}' is a whole number, 0 or more; {value!r:.80} came")
    return value
