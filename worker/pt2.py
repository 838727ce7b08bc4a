"""Reads a program file (`torch.export`'s .pt2 archive) without running anything that is in it.

`torch.export.load` unpickles payloads that ask for it and evaluates the text of symbolic sizes as Python. So the
archive is read here (see `worker/archive.py`), and of its graph only plain operator calls are taken (see
`worker/operators.py` and `worker/expression.py`).
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch._export.serde.schema import SCHEMA_VERSION, Layout, MemoryFormat, ScalarType

from worker.archive import Archive, ProgramError
from worker.expression import ExpressionError, Size, parse
from worker.operators import ASSERTIONS, OperatorError, resolve
from worker.program import Program, Ref, SizeRef, Step, Value

_IDENTIFIER: Final = re.compile(r"[A-Za-z_]\w{0,254}", re.ASCII)
# PyTorch has these tables in `torch._export.serde.serialize`, which brings its compiler along: seconds for each worker.
DTYPES: Final[Mapping[int, torch.dtype]] = {
    ScalarType.BYTE: torch.uint8,
    ScalarType.CHAR: torch.int8,
    ScalarType.SHORT: torch.int16,
    ScalarType.INT: torch.int32,
    ScalarType.LONG: torch.int64,
    ScalarType.HALF: torch.float16,
    ScalarType.FLOAT: torch.float32,
    ScalarType.DOUBLE: torch.float64,
    ScalarType.COMPLEXHALF: torch.complex32,
    ScalarType.COMPLEXFLOAT: torch.complex64,
    ScalarType.COMPLEXDOUBLE: torch.complex128,
    ScalarType.BOOL: torch.bool,
    ScalarType.BFLOAT16: torch.bfloat16,
    ScalarType.UINT16: torch.uint16,
    ScalarType.FLOAT8E4M3FN: torch.float8_e4m3fn,
    ScalarType.FLOAT8E5M2: torch.float8_e5m2,
    ScalarType.FLOAT8E4M3FNUZ: torch.float8_e4m3fnuz,
    ScalarType.FLOAT8E5M2FNUZ: torch.float8_e5m2fnuz,
    ScalarType.FLOAT8E8M0FNU: torch.float8_e8m0fnu,
    ScalarType.UINT32: torch.uint32,
    ScalarType.UINT64: torch.uint64,
}
LAYOUTS: Final[Mapping[int, torch.layout]] = {
    Layout.SparseCoo: torch.sparse_coo,
    Layout.SparseCsr: torch.sparse_csr,
    Layout.SparseCsc: torch.sparse_csc,
    Layout.SparseBsr: torch.sparse_bsr,
    Layout.SparseBsc: torch.sparse_bsc,
    Layout._mkldnn: torch._mkldnn,  # type: ignore[attr-defined]
    Layout.Strided: torch.strided,
}
MEMORY_FORMATS: Final[Mapping[int, torch.memory_format]] = {
    MemoryFormat.ContiguousFormat: torch.contiguous_format,
    MemoryFormat.ChannelsLast: torch.channels_last,
    MemoryFormat.ChannelsLast3d: torch.channels_last_3d,
    MemoryFormat.PreserveFormat: torch.preserve_format,
}
_CONSTANTS: Final = frozenset({"as_none", "as_int", "as_float", "as_bool", "as_string"})


def read_program(path: Path, *, in_place: bool = False) -> Program:
    """The program in a .pt2 file. Weights stay in the file and are mapped, private to this process.

    `in_place`: also take operators that change their input: a program that is about to be captured again.

    Raises:
        ProgramError: the file is damaged, or holds anything but tensors and plain operator calls.
    """
    try:
        return _Reader(Archive(path), in_place=in_place).program()
    except (ExpressionError, OperatorError, ProgramError) as error:
        raise ProgramError(f"{path}: {error}") from error
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RecursionError, RuntimeError) as error:
        raise ProgramError(
            f"{path}: the graph is not one that torch.export {torch.__version__} writes: {error!r}"[:1000]
        ) from error


class _Reader:
    def __init__(self, archive: Archive, *, in_place: bool) -> None:
        self._archive = archive
        self._in_place = in_place
        self._sizes: dict[str, Size] = {}
        self._hints: dict[str, int] = {}

    def program(self) -> Program:
        document = self._archive.json("models/model.json")
        version = document["schema_version"]["major"]
        if version != SCHEMA_VERSION[0]:
            raise ProgramError(f"graph schema {version}; this PyTorch {torch.__version__} reads {SCHEMA_VERSION[0]}")
        module = document["graph_module"]
        graph = module["graph"]
        if graph.get("custom_obj_values"):
            raise ProgramError("the graph holds custom objects; only tensors are taken")
        for name, described in graph["sym_int_values"].items():
            self._sizes[_identifier(name)] = self._size(described)
        values = {_identifier(name): self._value(meta) for name, meta in graph["tensor_values"].items()}
        weights, inputs = self._inputs(module["signature"], graph["inputs"], values)
        outputs = self._outputs(module["signature"], values)
        steps = tuple(step for node in graph["nodes"] for step in self._steps(node, values, {*weights, *inputs}))
        bounds = {
            str(parse(name)): (int(bound["min_val"] or 0), None if bound["max_val"] is None else int(bound["max_val"]))
            for name, bound in document["range_constraints"].items()
        }
        _check_order(inputs, weights, steps, outputs)
        return Program(inputs, outputs, steps, values, weights, bounds, self._hints).without_dead_steps()

    def _size(self, described: Mapping[str, Any]) -> Size:
        match described:
            case {"as_int": int(number)}:
                return number
            case {"as_expr": {"expr_str": str(text), **rest}}:
                size = parse(text)
                match rest.get("hint"):
                    case {"as_int": int(hint)} if not isinstance(size, int) and size.is_Symbol:
                        self._hints[size.name] = hint
                return size
        raise ProgramError(f"a size is described as {str(described)[:120]}")

    def _value(self, meta: Mapping[str, Any]) -> Value:
        if LAYOUTS[meta["layout"]] is not torch.strided:
            raise ProgramError("a tensor is sparse; only dense tensors are taken")
        shape = tuple(self._size(size) for size in meta["sizes"])
        strides = tuple(self._size(size) for size in meta["strides"])
        if len(shape) != len(strides):
            raise ProgramError("a tensor has as many strides as dimensions")
        return Value(DTYPES[meta["dtype"]], shape, strides)

    def _inputs(
        self, signature: Mapping[str, Any], arguments: list[Any], values: dict[str, Value]
    ) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
        payloads = {"weights": self._payloads("weights"), "constants": self._payloads("constants")}
        weights: dict[str, torch.Tensor] = {}
        inputs: list[str] = []
        for spec, argument in zip(signature["input_specs"], arguments, strict=True):
            match spec:
                case {"user_input": {"arg": {"as_tensor": {"name": name}}}}:
                    inputs.append(name)
                case {"parameter": {"arg": {"name": name}, "parameter_name": fqn}}:
                    weights[name] = payloads["weights"][fqn]
                case {"buffer": {"arg": {"name": name}, "buffer_name": fqn, "persistent": persistent}}:
                    weights[name] = payloads["weights" if persistent else "constants"][fqn]
                case {"tensor_constant": {"arg": {"name": name}, "tensor_constant_name": fqn}}:
                    weights[name] = payloads["constants"][fqn]
                case {"constant_input": _} | {"user_input": _} if next(iter(argument)) in _CONSTANTS:
                    continue
                case _:
                    raise ProgramError(f"an input is {str(spec)[:120]}; only tensors are taken")
            if argument != {"as_tensor": {"name": name}} or name not in values:
                raise ProgramError(f"the input {name!r} is not the tensor that the signature says")
        return weights, tuple(inputs)

    def _outputs(self, signature: Mapping[str, Any], values: Mapping[str, Value]) -> tuple[str, ...]:
        outputs = []
        for spec in signature["output_specs"]:
            match spec:
                case {"user_output": {"arg": {"as_tensor": {"name": name}}}} if name in values:
                    outputs.append(name)
                case _:
                    raise ProgramError(
                        f"an output is {str(spec)[:120]}; only tensors are taken, and weights may not be changed"
                    )
        return tuple(outputs)

    def _payloads(self, kind: str) -> dict[str, torch.Tensor]:
        config = self._archive.json(f"data/{kind}/model_{kind}_config.json")["config"]
        return {name: self._tensor(kind, name, payload) for name, payload in config.items()}

    def _tensor(self, kind: str, name: str, payload: Mapping[str, Any]) -> torch.Tensor:
        if payload["use_pickle"] is not False or payload["tensor_meta"] is None:
            raise ProgramError(f"the weight {name[:120]!r} is a pickle or a custom object; only raw tensors are taken")
        meta = payload["tensor_meta"]
        value = self._value(meta)
        numbers = (*value.shape, *value.strides, self._size(meta["storage_offset"]))
        if not all(isinstance(number, int) for number in numbers):
            raise ProgramError(f"the weight {name[:120]!r} has no fixed shape")
        return self._archive.tensor(
            f"data/{kind}/{payload['path_name']}", value.dtype, value.shape, value.strides, numbers[-1]
        )

    def _steps(self, node: Mapping[str, Any], values: Mapping[str, Value], given: set[str]) -> list[Step]:
        """The step that a node is; none for arithmetic on sizes and for assertions."""
        target = node["target"]
        outputs = self._node_outputs(node)
        if outputs is None or target in ASSERTIONS:
            return []
        for name in outputs:
            if name is not None and (name not in values or name in given):
                raise ProgramError(f"the value {name!r} is not described, or is an input")
        operator = resolve(target, in_place=self._in_place)
        returns = operator._schema.returns
        several = len(returns) != 1 or "List" in str(returns[0].type)
        known = {argument.name: argument for argument in operator._schema.arguments}
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        for argument in node["inputs"]:
            label = argument["name"]
            if label not in known:
                raise ProgramError(f"{target!r} takes no argument {label[:80]!r}")
            value = self._argument(argument["arg"])
            if known[label].kwarg_only or argument.get("kind") == 2:
                kwargs[label] = value
            else:
                args.append(value)
        return [Step(operator, tuple(args), kwargs, tuple(outputs), several)]

    def _node_outputs(self, node: Mapping[str, Any]) -> list[str | None] | None:
        """Names of a node's tensors; None where it gives a size, which is known from the shapes of inputs."""
        outputs: list[str | None] = []
        for output in node["outputs"]:
            match output:
                case {"as_tensor": {"name": name}}:
                    outputs.append(name)
                case {"as_tensors": listed}:
                    outputs.extend(item["name"] for item in listed)
                case {"as_sym_int": {"as_name": name}} if name in self._sizes:
                    return None
                case {"as_sym_bool": _} | {"as_sym_float": _}:
                    return None
                case {"as_none": True}:
                    outputs.append(None)
                case _:
                    raise ProgramError(f"{node['target'][:120]!r} gives {str(output)[:120]}")
        return outputs

    def _argument(self, argument: Mapping[str, Any]) -> Any:  # noqa: PLR0911, PLR0912 -- one line a kind of argument
        ((kind, value),) = argument.items()
        match kind:
            case "as_none":
                return None
            case "as_tensor":
                return Ref(value["name"])
            case "as_tensors":
                return [Ref(item["name"]) for item in value]
            case "as_optional_tensors":
                return [Ref(item["as_tensor"]["name"]) if "as_tensor" in item else None for item in value]
            case "as_int" | "as_float" | "as_bool" | "as_string":
                if not isinstance(value, (int, float, bool, str)):
                    raise ProgramError(f"an argument is {str(argument)[:120]}")
                return float(value) if kind == "as_float" else value
            case "as_ints" | "as_floats" | "as_bools":
                if not all(isinstance(item, (int, float)) for item in value):
                    raise ProgramError(f"an argument is {str(argument)[:120]}")
                return list(value)
            case "as_sym_int":
                return self._size_argument(value)
            case "as_sym_ints":
                return [self._size_argument(item) for item in value]
            case "as_scalar_type":
                return DTYPES[value]
            case "as_memory_format":
                return MEMORY_FORMATS[value]
            case "as_layout":
                return LAYOUTS[value]
            case "as_device":
                return torch.device("cpu") if value["type"] == "cpu" else torch.device(value["type"], value["index"])
        raise ProgramError(f"an argument of the kind {kind[:40]!r} is not supported")

    def _size_argument(self, value: Mapping[str, Any]) -> Any:
        match value:
            case {"as_int": int(number)}:
                return number
            case {"as_name": name}:
                size = self._sizes[name]
                return size if isinstance(size, int) else SizeRef(size)
        raise ProgramError(f"a size is given as {str(value)[:120]}")


def _identifier(name: str) -> str:
    if not _IDENTIFIER.fullmatch(name):
        raise ProgramError(f"the name {name[:80]!r} is not an identifier")
    return name


def _check_order(
    inputs: tuple[str, ...], weights: Mapping[str, Any], steps: tuple[Step, ...], outputs: tuple[str, ...]
) -> None:
    known = {*inputs, *weights}
    if len(known) != len(inputs) + len(weights):
        raise ProgramError("two inputs have one name")
    for step in steps:
        for name in step.uses:
            if name not in known:
                raise ProgramError(f"the value {name!r} is used before it is computed")
        for made in step.outputs:
            if made in known:
                raise ProgramError(f"the value {made!r} is computed twice")
            if made is not None:
                known.add(made)
    missing = [name for name in outputs if name not in known]
    if missing:
        raise ProgramError(f"the outputs {', '.join(missing)} are never computed")
