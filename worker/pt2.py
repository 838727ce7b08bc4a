"""Reads a program file (`torch.export`'s .pt2 archive) without running anything that is in it.

`torch.export.load` unpickles payloads that ask for it and evaluates the text of symbolic sizes as Python. So the
archive is read here: stored zip entries with known names, weights as raw bytes mapped from the file, the graph as JSON of
which only plain operator calls are taken (see `worker/operators.py` and `worker/expression.py`).
"""

import json
import mmap
import re
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch._export.serde.schema import SCHEMA_VERSION
from torch._export.serde.serialize import (
    _SERIALIZE_TO_TORCH_DTYPE,
    _SERIALIZE_TO_TORCH_LAYOUT,
    _SERIALIZE_TO_TORCH_MEMORY_FORMAT,
)

from worker.errors import ShardlineError
from worker.expression import ExpressionError, Size, parse
from worker.operators import ASSERTIONS, OperatorError, resolve
from worker.program import Program, Ref, SizeRef, Step, Value

MAX_GRAPH_BYTES: Final = 256 * 2**20
MAX_ENTRIES: Final = 100_000

_IDENTIFIER: Final = re.compile(r"[A-Za-z_]\w{0,254}", re.ASCII)
_PLAIN_ENTRIES: Final = frozenset({"archive_format", "archive_version", "byteorder", ".data/version", ".data/serialization_id", "version"})  # fmt: skip
_ENTRY: Final = re.compile(
    r"models/model\.json|data/weights/(model_weights_config\.json|weight_\d+)"
    r"|data/constants/(model_constants_config\.json|tensor_\d+)|data/sample_inputs/model\.pt"
)
_LOCAL_HEADER: Final = struct.Struct("<4s5H3I2H")


class ProgramError(ShardlineError):
    """A program file that cannot be read, or that holds something that a program may not."""

    code = 3


def read_program(path: Path, *, in_place: bool = False) -> Program:
    """The program in a .pt2 file. Weights stay in the file and are mapped, private to this process.

    `in_place`: also take operators that change their input: a program that is about to be captured again.

    Raises:
        ProgramError: the file is damaged, or holds anything but tensors and plain operator calls.
    """
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            records = _records(archive, file)
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        return _Reader(records, mapped, in_place=in_place).program()
    except (zipfile.BadZipFile, EOFError, OSError, struct.error) as error:
        raise ProgramError(f"{path}: not a readable .pt2 archive: {error}") from error
    except (ExpressionError, OperatorError, ProgramError) as error:
        raise ProgramError(f"{path}: {error}") from error
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RecursionError, RuntimeError) as error:
        raise ProgramError(
            f"{path}: the graph is not one that torch.export {torch.__version__} writes: {error!r}"
        ) from error


def _records(archive: zipfile.ZipFile, file: Any) -> dict[str, tuple[int, int]]:
    """Each entry's place in the file: (offset, bytes)."""
    entries = archive.infolist()
    if not 0 < len(entries) <= MAX_ENTRIES:
        raise ProgramError(f"{len(entries)} entries in the archive; expected 1 to {MAX_ENTRIES}")
    root = entries[0].filename.split("/", 1)[0]
    records: dict[str, tuple[int, int]] = {}
    for entry in entries:
        folder, _, name = entry.filename.partition("/")
        if folder != root or not (name in _PLAIN_ENTRIES or _ENTRY.fullmatch(name)):
            raise ProgramError(
                f"unknown entry {entry.filename[:120]!r} in the archive; only a captured program is read"
            )
        if name in records:
            raise ProgramError(f"the archive holds {name!r} twice")
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
            raise ProgramError(f"the entry {name!r} is compressed; torch.export stores entries as they are")
        file.seek(entry.header_offset)
        header = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
        if header[0] != b"PK\x03\x04":
            raise ProgramError(f"the entry {name!r} has no header where the archive says")
        offset = entry.header_offset + _LOCAL_HEADER.size + header[9] + header[10]
        file.seek(0, 2)
        if offset + entry.file_size > file.tell():
            raise ProgramError(f"the entry {name!r} reaches past the end of the file")
        records[name] = (offset, entry.file_size)
    return records


class _Reader:
    def __init__(self, records: Mapping[str, tuple[int, int]], mapped: mmap.mmap, *, in_place: bool) -> None:
        self._records = records
        self._mapped = mapped
        self._in_place = in_place
        self._sizes: dict[str, Size] = {}
        self._constants: dict[str, Any] = {}
        self._hints: dict[str, int] = {}

    def program(self) -> Program:
        if self._text("archive_format", 16) != "pt2" or self._text("archive_version", 16) not in {"0", "1"}:
            raise ProgramError("not a .pt2 archive of a version that is known here")
        if self._text("byteorder", 16) != "little":
            raise ProgramError("the weights are not little-endian")
        document = self._json("models/model.json")
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

    def _bytes(self, name: str, most: int) -> bytes:
        if name not in self._records:
            raise ProgramError(f"the archive has no {name!r}")
        offset, length = self._records[name]
        if length > most:
            raise ProgramError(f"the entry {name!r} is {length} bytes; at most {most} are read")
        return self._mapped[offset : offset + length]

    def _text(self, name: str, most: int) -> str:
        return self._bytes(name, most).decode("utf-8").strip()

    def _json(self, name: str) -> Any:
        return json.loads(self._bytes(name, MAX_GRAPH_BYTES))

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
        if _SERIALIZE_TO_TORCH_LAYOUT[meta["layout"]] is not torch.strided:
            raise ProgramError("a tensor is sparse; only dense tensors are taken")
        shape = tuple(self._size(size) for size in meta["sizes"])
        strides = tuple(self._size(size) for size in meta["strides"])
        if len(shape) != len(strides):
            raise ProgramError("a tensor has as many strides as dimensions")
        return Value(_SERIALIZE_TO_TORCH_DTYPE[meta["dtype"]], shape, strides)

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
                case {"constant_input": _} | {"user_input": _} if next(iter(argument)) in {"as_none", "as_int", "as_float", "as_bool", "as_string"}:  # fmt: skip
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
                        f"an output is {str(spec)[:120]}; only tensors are taken, and a program may not change its weights"
                    )
        return tuple(outputs)

    def _payloads(self, kind: str) -> dict[str, torch.Tensor]:
        config = self._json(f"data/{kind}/model_{kind}_config.json")["config"]
        return {name: self._tensor(kind, name, payload) for name, payload in config.items()}

    def _tensor(self, kind: str, name: str, payload: Mapping[str, Any]) -> torch.Tensor:
        if payload["use_pickle"] is not False or payload["tensor_meta"] is None:
            raise ProgramError(f"the weight {name[:120]!r} is a pickle or a custom object; only raw tensors are taken")
        meta = payload["tensor_meta"]
        value = self._value(meta)
        shape, strides, offset = value.shape, value.strides, self._size(meta["storage_offset"])
        record = f"data/{kind}/{payload['path_name']}"
        if record not in self._records:
            raise ProgramError(f"the archive has no {record[:120]!r} for the weight {name[:120]!r}")
        place, length = self._records[record]
        numbers = [number for number in (*shape, *strides, offset) if isinstance(number, int) and number >= 0]
        if len(numbers) != len(shape) + len(strides) + 1:
            raise ProgramError(f"the weight {name[:120]!r} has no fixed shape")
        elements = 1
        last = numbers[-1]
        for size, stride in zip(numbers, numbers[len(shape) : -1], strict=False):
            elements *= size
            last += (size - 1) * stride
        if elements == 0:
            return torch.empty(shape, dtype=value.dtype)  # type: ignore[arg-type]
        held = length // value.dtype.itemsize
        if last >= held or elements > held:
            raise ProgramError(f"the weight {name[:120]!r} needs more than the {length} bytes of {record!r}")
        flat = torch.frombuffer(self._mapped, dtype=value.dtype, count=held, offset=place)
        return flat.as_strided(shape, strides, offset)  # type: ignore[arg-type]

    def _steps(self, node: Mapping[str, Any], values: Mapping[str, Value], given: set[str]) -> list[Step]:
        target = node["target"]
        outputs: list[str | None] = []
        for output in node["outputs"]:
            match output:
                case {"as_tensor": {"name": name}}:
                    outputs.append(name)
                case {"as_tensors": listed}:
                    outputs.extend(item["name"] for item in listed)
                case {"as_sym_int": {"as_name": name}} if name in self._sizes:
                    return []
                case {"as_sym_bool": _} | {"as_sym_float": _}:
                    return []
                case {"as_none": True}:
                    outputs.append(None)
                case _:
                    raise ProgramError(f"{target[:120]!r} gives {str(output)[:120]}")
        if target in ASSERTIONS:
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
        for given_argument in node["inputs"]:
            name = given_argument["name"]
            if name not in known:
                raise ProgramError(f"{target!r} takes no argument {name[:80]!r}")
            value = self._argument(given_argument["arg"])
            if known[name].kwarg_only or given_argument.get("kind") == 2:
                kwargs[name] = value
            else:
                args.append(value)
        return [Step(operator, tuple(args), kwargs, tuple(outputs), several)]

    def _argument(self, argument: Mapping[str, Any]) -> Any:  # noqa: PLR0911, PLR0912 (one line a kind of argument)
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
                return _SERIALIZE_TO_TORCH_DTYPE[value]
            case "as_memory_format":
                return _SERIALIZE_TO_TORCH_MEMORY_FORMAT[value]
            case "as_layout":
                return _SERIALIZE_TO_TORCH_LAYOUT[value]
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
        for name in step.outputs:
            if name in known:
                raise ProgramError(f"the value {name!r} is computed twice")
            if name is not None:
                known.add(name)
    missing = [name for name in outputs if name not in known]
    if missing:
        raise ProgramError(f"the outputs {', '.join(missing)} are never computed")
