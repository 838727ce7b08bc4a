"""Captures a module as a program file: once, whole, with dynamic axes, in a form without in-place operators."""

import io
import linecache
import logging
import re
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from itertools import takewhile
from pathlib import Path
from traceback import FrameSummary, walk_stack, walk_tb
from types import FrameType
from typing import IO, Any, BinaryIO, Final, cast

import sympy  # type: ignore[import-untyped]
import torch
from torch._dynamo.exc import UserError
from torch._ops import HigherOrderOperator, OpOverload
from torch.export import Dim, ExportedProgram
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode, ShapeEnv
from torch.overrides import TorchFunctionMode, resolve_name

from compressor.model import Input, Model
from worker.errors import InvalidRequest, ShardlineError, first_line
from worker.manifest import AXIS_NAME
from worker.nouns import Axis
from worker.program import DATATYPES, Program
from worker.pt2 import read_program

_NOT_THE_MODULES: Final = (Path(torch.__file__).parent, Path(__file__).parent)
_FRAME: Final = re.compile(r'File "([^"]+)", line (\d+), in')
_VIOLATED: Final = re.compile(r"Constraints violated \(([^)]*)\)")
_NOISE: Final = ("For extended logs", "If you suspect", "The error above", "If you're using")


class CaptureError(ShardlineError):
    """A module that cannot be captured as it is. The message says what to change."""

    code = 3


def capture(model: Model, path: Path) -> Program:
    """Captures `model` into the program file `path` and reads it back.

    Raises:
        CaptureError: naming the input, the axis or the operator that stands in the way.
    """
    exported = export(model, functional=True)
    _check_operators(model, exported)
    _write(exported, path)
    return read_program(path)


def export(model: Model, *, functional: bool) -> ExportedProgram:
    """The model's graph, with its dynamic axes. The module under it is `Flat`'s "module".

    functional: without in-place operators, and with what is not elementary written out.

    Raises:
        CaptureError: see `capture`.
    """
    _check(model)
    axes = {axis.name: axis for axis in model.axes}
    dims = {
        name: Dim(name, min=axes.get(name, Axis(name)).minimum, max=axes.get(name, Axis(name)).maximum)
        for item in model.inputs
        for name in item.axes
        if name is not None
    }
    shapes = tuple(
        {axis: dims[name] for axis, name in enumerate(item.axes) if name is not None} for item in model.inputs
    )
    examples = tuple(item.example for item in model.inputs)
    module = model.module.eval()
    try:
        with quietly():
            exported = torch.export.export(Flat(module), examples, dynamic_shapes=(shapes,), strict=False)
            return exported.run_decompositions({}) if functional else exported
    except Exception as error:  # torch.export raises errors of many unrelated types
        violated = _VIOLATED.search(str(error)) if isinstance(error, UserError) else None
        if violated is not None:
            again = redirect_stderr(io.StringIO())  # what the module itself writes was written once
            with suppress(Exception), again, quietly(), _Binding(module) as binding:
                torch.export.export(Flat(module), examples, dynamic_shapes=(shapes,), strict=False)
            raise CaptureError(_bound(model, violated[1].split(", "), str(error), binding.told())) from error
        raise CaptureError(explained(module, error)) from error


class _Binding(TorchFunctionMode):
    """Finds what binds the size of an input's axis, while a module is exported."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self._place = ""
        self._module = module
        self._env: ShapeEnv | None = None
        self._known = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        found = func(*args, **(kwargs or {}))
        for tensor in (*args, found) if self._env is None else ():
            for size in tensor.shape if isinstance(tensor, torch.Tensor) else ():
                self._env = size.node.shape_env if isinstance(size, torch.SymInt) else self._env
        guards = self._env.guards if self._env is not None else []
        if not self._place and any(isinstance(guard.expr, sympy.Eq) for guard in guards[self._known :]):
            within = takewhile(lambda each: each[0].f_code is not export.__code__, walk_stack(None))
            frames = list(within)[::-1]  # who asks for the capture binds nothing
            self._place = _where(self._module, frames, resolve_name(func) or "")
        self._known = len(guards)
        return found

    def told(self) -> str:
        """The first call that binds one, or else the line of the module's code that compares one; or nothing."""
        places = [guard.sloc.framework_loc for guard in (self._env.guards if self._env is not None else ())]
        lines = [_line(place.filename, place.lineno or 0) for place in places if isinstance(place, FrameSummary)]
        return self._place or next((line for line in lines if line), "")


def _bound(model: Model, axes: Sequence[str], told: str, place: str) -> str:
    """What torch has told of axes that are not as free as the model's description says, in the words of that."""
    named = {axis: f"axis {axis!r} of the input {item.name!r}" for item in reversed(model.inputs) for axis in item.axes}
    found = []
    for axis in axes:
        fix = re.search(rf"^  {re.escape(axis)} = (.+)$", told, re.MULTILINE)
        fixed = fix[1] if fix else ""
        least, most = (re.search(rf"{side}=(\d+)", fixed) for side in ("min", "max"))
        if fixed.isdecimal():
            mend = f"its size is {fixed} there, and no other; use the tensor's own size, or give the axis no name"
        elif fixed in named:
            mend = f"its size is always that of the {named[fixed]}; give both one name"
        elif least or most:
            bounds = [f"{side}={bound[1]}" for side, bound in (("minimum", least), ("maximum", most)) if bound]
            mend = f"its sizes are bounded there; say so with Axis({axis!r}, {', '.join(bounds)})"
        else:
            mend = f"its sizes are bound there{f' ({axis} = {fixed})' if fixed else ''}; compute so that any will do"
        found.append(f"{named.get(axis, f'axis {axis!r}')}: {mend}")
    return f"{type(model.module).__name__} cannot be captured: {place + ': ' if place else ''}{'; '.join(found)}"


def outputs_of(model: Model) -> tuple[torch.Tensor, ...]:
    """What the model gives for its examples.

    Raises:
        InvalidRequest: it does not run.
    """
    try:
        with torch.no_grad(), without_fast_path():
            return Flat(model.module.eval())(*(item.example for item in model.inputs))  # type: ignore[no-any-return]
    except ShardlineError:
        raise
    except Exception as error:  # the model's own code
        place = _where(model.module, walk_tb(error.__traceback__))
        told = f"{type(model.module).__name__} does not run on its examples: {place + ': ' if place else ''}"
        raise InvalidRequest(f"{told}{type(error).__name__}: {first_line(error)[:900]}") from error


@contextmanager
def quietly() -> Iterator[None]:
    """For an export: without gradients, warnings, torch's log, and the graphs that it prints to stderr where it fails.

    What else is written to stderr meanwhile, as by the module itself, comes when it is over.
    """
    before, told, dump = logging.root.manager.disable, io.StringIO(), ""
    logging.disable(logging.ERROR)
    try:
        with torch.no_grad(), warnings.catch_warnings(), redirect_stderr(told):
            warnings.simplefilter("ignore")
            yield
    except Exception as error:
        dump = str(getattr(error, "partial_fx_graph", ""))
        raise
    finally:
        logging.disable(before)
        rest = told.getvalue().replace(f"{dump}\n", "") if dump else told.getvalue()
        if rest:
            sys.stderr.write(rest)


@contextmanager
def without_fast_path() -> Iterator[None]:
    """PyTorch's own transformer layers call the layers in them, one after the other, as they do in a capture.

    Else, in evaluation mode, an nn.TransformerEncoder may give them what is not padding as one nested tensor, which
    hooks cannot look at.
    """
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


class Flat(torch.nn.Module):
    """Gives the module's outputs as a flat tuple of tensors."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        outputs = self.module(*inputs)
        if isinstance(outputs, torch.Tensor):
            return (outputs,)
        if isinstance(outputs, Mapping):
            outputs = tuple(outputs.values())
        if not isinstance(outputs, (tuple, list)) or not all(isinstance(item, torch.Tensor) for item in outputs):
            raise CaptureError(
                f"the module returns {_describe(outputs)}; expected a tensor, or a tuple, list or dict of tensors"
            )
        return tuple(outputs)


def _describe(outputs: Any) -> str:
    if isinstance(outputs, (tuple, list)):
        return f"a {type(outputs).__name__} of {', '.join(map(_kind, outputs))}"
    return f"a {type(outputs).__name__}"


def _kind(value: Any) -> str:
    return "Tensor" if isinstance(value, torch.Tensor) else type(value).__name__


def _check(model: Model) -> None:
    if not model.inputs:
        raise CaptureError("the model has no inputs; give an example of each")
    names = [item.name for item in model.inputs]
    if len(set(names)) != len(names):
        raise CaptureError(f"two inputs have one name: {', '.join(names)}")
    for item in model.inputs:
        _check_input(item)


def _check_input(item: Input) -> None:
    shape = tuple(item.example.shape)
    if item.example.dtype not in DATATYPES:
        raise CaptureError(
            f"input {item.name!r}: {item.example.dtype} has no name in the protocol; cast it in the module"
        )
    if len(item.axes) != len(shape):
        raise CaptureError(f"input {item.name!r}: {len(item.axes)} axes for an example of shape {list(shape)}")
    for name, size in zip(item.axes, shape, strict=True):
        if name is None:
            continue
        if not AXIS_NAME.fullmatch(name):
            raise CaptureError(f"input {item.name!r}: {name!r} cannot name an axis; use letters, digits and _")
        if size < 2:
            raise CaptureError(
                f"input {item.name!r}: the example's axis {name!r} is {size}; give an example of at least 2, "
                "or the capture takes the 1 for a constant"
            )


def explained(module: torch.nn.Module, error: Exception) -> str:
    """What torch says, after the operator that it was in, the layer, and the line of its code."""
    if isinstance(error, CaptureError):
        return str(error)
    place = _where(module, walk_tb(error.__traceback__), error=error)
    lines = [part.strip() for part in str(error).splitlines() if part.strip()] or [type(error).__name__]
    told = " ".join(part.partition("For more information")[0] for part in lines[:6] if not part.startswith(_NOISE))
    if isinstance(error, GuardOnDataDependentSymNode):
        told = "a branch or a size depends on the data; compute both sides, and choose with torch.where"
    return f"{type(module).__name__} cannot be captured: {place + ': ' if place else ''}{told[:900]}"


def _where(
    module: torch.nn.Module, frames: Iterable[tuple[FrameType, int]], operator: str = "", error: Exception | None = None
) -> str:
    """What was running: the innermost operator, layer, and line that is neither PyTorch's nor ours."""
    names = {id(part): name for name, part in module.named_modules()}
    layer, line = "", ""
    graph: torch.fx.Graph | None = None
    for frame, number in frames:
        code, values = frame.f_code, frame.f_locals
        found = next((values[name] for name in ("func", "op") if isinstance(values.get(name), OpOverload)), None)
        operator = str(found) if found is not None else operator
        for value in values.values():
            layer = names.get(id(value), layer) if isinstance(value, torch.nn.Module) else layer
            graph = value.graph if isinstance(value, torch.fx.Tracer) and hasattr(value, "graph") else graph
        line = _line(code.co_filename, number) or line
    if isinstance(error, GuardOnDataDependentSymNode) and graph is not None:
        operator = _read(graph) or operator
    return _place(operator, layer, line)


def _read(graph: torch.fx.Graph) -> str:
    """The operator by which the last number came out of a tensor, and the one that had computed it."""
    readers = [node for node in graph.nodes if node.meta.get("unbacked_bindings")]
    if not readers:
        return ""
    maker = readers[-1].args[0] if readers[-1].args else None
    while isinstance(maker, torch.fx.Node) and maker.target is torch.ops.aten.ne.Scalar and len(maker.all_input_nodes):
        maker = maker.all_input_nodes[0]  # a tensor's truth: whether it is not 0
    made = isinstance(maker, torch.fx.Node) and isinstance(maker.target, OpOverload)
    return f"{readers[-1].target}{f' of what {maker.target} gave' if made else ''}"  # type: ignore[union-attr]


def _line(file: str, number: int) -> str:
    """A line of code that is neither PyTorch's nor ours; "" for others."""
    path = Path(file)
    if not path.is_file() or any(path.is_relative_to(folder) for folder in _NOT_THE_MODULES):
        return ""
    return f"at {path.name}:{number} ({linecache.getline(file, number).strip()})"


def _place(operator: str, layer: str, line: str) -> str:
    parts = (f"operator {operator}" if operator else "", f"in {layer}" if layer else "", line)
    return " ".join(part for part in parts if part)


def _place_of(node: torch.fx.Node) -> str:
    """An operator of a captured graph, the layer that it is in, and the line of code that called it."""
    layers = [path for path, _ in (node.meta.get("nn_module_stack") or {}).values()]
    layer = layers[-1].partition(".")[2] if layers else ""
    frames = _FRAME.findall(node.meta.get("stack_trace") or "")
    lines = [line for line in (_line(file, int(number)) for file, number in frames) if line]
    return _place(str(node.target), layer, lines[-1] if lines else "")


def _check_operators(model: Model, exported: ExportedProgram) -> None:
    """Names the first operator whose result has a size that only the data tell, or that is a branch or a loop."""
    kind = type(model.module).__name__
    for node in exported.graph.nodes:
        if node.meta.get("unbacked_bindings"):
            raise CaptureError(
                f"{kind} cannot be captured: {_place_of(node)}: it gives a size that depends on the data; "
                "give it a fixed size (mask instead of select)"
            )
        if isinstance(node.target, HigherOrderOperator):
            raise CaptureError(
                f"{kind} cannot be captured: {_place_of(node)}: it branches or loops; compute both sides instead"
            )


def _write(exported: ExportedProgram, path: Path) -> None:
    """Saves the program without its examples, and without what tells of the machine that it was captured on."""
    for module in exported.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                for key in ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "from_node", "custom"):
                    node.meta.pop(key, None)
    exported._example_inputs = None
    exported._guards_code = []
    with warnings.catch_warnings(), patient_file(path) as file:
        warnings.simplefilter("ignore")
        torch.export.save(exported, file)


@contextmanager
def patient_file(path: Path) -> Iterator[IO[bytes]]:
    """A new file for PyTorch to write. Raises OSError afterwards: something could not be written, as on a full disk."""
    with path.open("wb") as file:
        patient = _PatientFile(file)
        yield cast(IO[bytes], patient)
        if patient.error is not None:
            raise patient.error


class _PatientFile(io.RawIOBase):
    """Keeps the first error of a file for later: PyTorch's writer ends the whole process when a write fails."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: OSError | None = None

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, place: int, whence: int = io.SEEK_SET) -> int:
        try:
            return self._file.seek(place, whence)  # which writes what is still buffered
        except OSError as error:
            self.error = self.error or error
            return place

    def write(self, data: Any) -> int:
        if self.error is None:
            try:
                self._file.write(data)
            except OSError as error:
                self.error = error
        return memoryview(data).nbytes
