"""Which operators a program file may name.

A file names operators by text. Only pure tensor arithmetic is taken: an operator that reads or writes files
(`aten.from_file`), that changes a tensor in place, or that returns something other than tensors is refused by its
schema, whatever its name. What is not known here: whether an operator's kernel checks its bounds; that is PyTorch's.
"""

import importlib
import re
from collections.abc import Mapping
from typing import Final

import torch
from torch._ops import OpOverload

_TARGET: Final = re.compile(r"torch\.ops\.([a-z_]{1,40})\.(\w{1,80})\.(\w{1,80})", re.ASCII)

NAMESPACES: Final[Mapping[str, str]] = {
    "aten": "",
    "prims": "",
    "torchao": "torchao.quantization",
    "quantized_decomposed": "torch.ao.quantization.fx._decomposed",
}
"""Namespaces of operators that are taken, and the installed module that registers them ("": torch itself)."""

_TYPES: Final = re.compile(
    r"(Tensor|Optional\[Tensor\]|List\[Tensor\]|List\[Optional\[Tensor\]\]|Optional\[List\[Tensor\]\]"
    r"|(Optional\[)?(List\[)?(Optional\[)?(int|float|bool|number|SymInt|Device)\]{0,3})"
)
_WORDS: Final = frozenset(
    [
        "approximate",
        "rounding_mode",
        "equation",
        "mode",
        "padding",
        "reduce",
        "indexing",
        "ord",
        "mapping_type",
        "interpolation",
        "norm",
        "side",
    ]
)
"""Arguments that are words of a closed vocabulary. No other text is handed to an operator."""

_RETURNS: Final = frozenset({"Tensor", "List[Tensor]"})

_REFUSED: Final = re.compile(
    r"from_file|save|nested|sparse|cslt|jagged|fbgemm|unsafe_(masked_)?index|segment_reduce|resize|_foreach|_test_|cudnn|miopen"
)
"""Names of operators that touch files, or whose kernels trust their arguments instead of checking them."""

ASSERTIONS: Final = frozenset(
    {
        "torch.ops.aten._assert_tensor_metadata.default",
        "torch.ops.aten._assert_scalar.default",
        "torch.ops.aten._assert_async.msg",
        "torch.ops.aten.sym_constrain_range.default",
        "torch.ops.aten.sym_constrain_range_for_size.default",
    }
)
"""Checks that capture leaves behind about types and sizes. The signature is checked once at the door instead."""


class OperatorError(ValueError):
    """An operator that programs may not use."""


def resolve(target: str, *, in_place: bool = False) -> OpOverload:
    """The operator named "torch.ops.<namespace>.<name>.<overload>".

    `in_place`: also take operators that change their input, as a program has them before it is made functional.

    Raises:
        OperatorError: it is not one that a program may use.
    """
    match = _TARGET.fullmatch(target)
    if match is None or match[1] not in NAMESPACES or "__" in match[2].strip("_"):
        raise OperatorError(f"the operator {target[:120]!r} is not one of {', '.join(NAMESPACES)}")
    namespace, name, overload = match.groups()
    if NAMESPACES[namespace]:
        importlib.import_module(NAMESPACES[namespace])
    packet = getattr(getattr(torch.ops, namespace), name, None)
    operator = getattr(packet, overload, None)
    if not isinstance(operator, OpOverload):
        raise OperatorError(f"the operator {target!r} is not in this PyTorch {torch.__version__}")
    problem = _problem(operator, in_place=in_place)
    if problem:
        raise OperatorError(f"the operator {target!r} {problem}")
    return operator


def _problem(operator: OpOverload, *, in_place: bool) -> str:
    schema = operator._schema
    if _REFUSED.search(schema.name):
        return "is refused: it touches files, or does not check what it is given"
    if schema.is_mutable and not in_place:
        return "changes a tensor in place"
    for argument in schema.arguments:
        kind = str(argument.type)
        if kind in {"str", "Optional[str]"} and argument.name in _WORDS:
            continue
        if kind == "Optional[Generator]":
            continue
        if not _TYPES.fullmatch(kind):
            return f"takes {argument.name}, a {kind}"
    for returned in schema.returns:
        if str(returned.type) not in _RETURNS:
            return f"gives a {returned.type}: sizes or branches that depend on the data cannot be served"
    return ""


def is_view(operator: OpOverload) -> bool:
    """Whether the result shares the first argument's elements: it costs nothing, and is cheap to repeat."""
    schema = operator._schema
    return not schema.is_mutable and any(returned.alias_info is not None for returned in schema.returns)


def is_pointwise(operator: OpOverload) -> bool:
    return torch.Tag.pointwise in operator.tags
