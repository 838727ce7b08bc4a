"""Int8 for convolutions, on the captured graph: batch norms are folded in, inputs and weights become int8.

The only file that knows torchao's PT2E. What it leaves is plain arithmetic on int8 tensors (quantize, dequantize,
convolution), which oneDNN computes as one int8 convolution with what follows it when a stage is compiled with frozen
weights; uncompiled, it is computed in fp32 and is slower than before.
"""

import logging
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from compressor.capture import export
from compressor.model import Model
from worker.errors import InvalidRequest

_WITHIN: Final = "module."
"""Before the names of modules on the graph: see `Flat`."""
_CONVOLUTION: Final = torch.ops.aten.conv2d.default
_PADDED: Final = torch.ops.aten.conv2d.padding
"""The same with its padding as a word."""
_PAD: Final = torch.ops.aten.constant_pad_nd.default


class Quantized(nn.Module):
    """A converted graph as a module like any other: it can be put into evaluation mode, and is always in it."""

    def __init__(self, graph: GraphModule, like: Any) -> None:
        """like: what the module before it returned."""
        super().__init__()
        self.graph = graph
        self._one = isinstance(like, Tensor)
        self._names = tuple(like) if isinstance(like, Mapping) else ()

    def forward(self, *inputs: Tensor) -> Any:
        outputs = self.graph(*inputs)
        if self._one:
            return outputs[0]
        return dict(zip(self._names, outputs, strict=True)) if self._names else outputs

    def train(self, mode: bool = True) -> "Quantized":
        del mode
        self.training = False
        return self


def quantize_convolutions(
    model: Model, names: Collection[str], batches: Sequence[tuple[Tensor, ...]], *, activation_bits: int = 8
) -> tuple[Quantized, dict[str, int]]:
    """What takes the place of the model's module, and the bytes that each quantized convolution then takes.

    Raises:
        CaptureError: the model cannot be captured.
        InvalidRequest: calibration gives no finite range, or none of the convolutions is used.
    """
    with _quiet():
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e  # noqa: PLC0415 -- slow
        from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86  # noqa: PLC0415

        graph = export(model, functional=False).module(check_guards=False)
        quantizer = x86.X86InductorQuantizer()
        configuration = x86.get_default_x86_inductor_quantization_config(reduce_range=activation_bits == 7)
        quantizer.set_module_type_qconfig(nn.Conv2d, configuration)
        _write_out_padding(graph)
        for node in graph.graph.nodes:
            if node.target is _CONVOLUTION and (name := _layer(node)) not in names:
                quantizer.set_module_name_qconfig(_WITHIN + name, None)
        prepared = prepare_pt2e(graph, quantizer)
        with torch.no_grad():
            for batch in batches:
                prepared(*batch)
        converted = convert_pt2e(prepared)
    _drop_unused(converted)
    _decode_where_used(converted)
    found = {
        _layer(node): _bytes(converted, node)
        for node in converted.graph.nodes
        if node.target is _CONVOLUTION and all(map(_is_dequantized, node.args[:2]))
    }
    if not found:
        raise InvalidRequest("no convolution was quantized: none is used by an output")
    unsound = [name for name, tensor in converted.named_buffers() if not _finite(tensor)]
    if unsound:
        raise InvalidRequest("calibration data give a convolution what is not a finite number")
    with torch.no_grad():
        like = model.module(*(item.example for item in model.inputs))
    return Quantized(converted, like), found


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences libraries that warn of what they do themselves."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _write_out_padding(module: GraphModule) -> None:
    """Gives convolutions whose padding is a word the same padding in numbers: the quantizer knows no other.

    What "same" pads more at the end than at the beginning is padded by an operator of its own.
    """
    for node in [node for node in module.graph.nodes if node.target is _PADDED]:
        given: list[Any] = [*node.args]
        given += [None, [1, 1], "valid", [1, 1], 1][len(given) - 2 :]
        taken, weight, bias, stride, padding, dilation, groups = given
        kernel = weight.meta["val"].shape[2:]
        whole = (
            [0, 0] if padding == "valid" else [step * (size - 1) for step, size in zip(dilation, kernel, strict=True)]
        )
        sides = [size // 2 for size in whole]
        if any(size % 2 for size in whole):
            # Pairs of (before, after), from the last dimension to the first.
            pads = [part for side, size in zip(sides[::-1], whole[::-1], strict=True) for part in (side, size - side)]
            with module.graph.inserting_before(node):
                padded = module.graph.call_function(_PAD, (taken, pads))
            padded.meta["val"] = _PAD(taken.meta["val"], pads)
            taken, sides = padded, [0, 0]
        node.target = _CONVOLUTION
        node.args = (taken, weight, bias, stride, sides, dilation, groups)
    module.recompile()


def _layer(node: Node) -> str:
    """The module that a node came from, by its name in the model."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [path for path, _ in stack.values()]
    name: str = paths[-1] if paths else ""
    return name.removeprefix("L['self'].").removeprefix(_WITHIN)


def _is_dequantized(value: object) -> bool:
    return isinstance(value, Node) and "dequantize" in str(value.target)


def _bytes(module: GraphModule, convolution: Node) -> int:
    """Bytes of the convolution's weight, scales and bias."""
    weight, bias = convolution.args[1], convolution.args[2] if len(convolution.args) > 2 else None
    sources = [*(weight.all_input_nodes if isinstance(weight, Node) else []), bias]
    nodes = [node for node in sources if isinstance(node, Node) and node.op == "get_attr"]
    held = [_attribute(module, str(node.target)) for node in nodes]
    return sum(tensor.numel() * tensor.element_size() for tensor in held)


def _attribute(module: nn.Module, name: str) -> Tensor:
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part)
    return found  # type: ignore[no-any-return]


def _drop_unused(module: GraphModule) -> None:
    """Removes the weights that the graph does not use any more: the ones before quantization."""
    used = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    held = [name for name, _ in (*module.named_parameters(), *module.named_buffers())]
    for name in held:
        if name not in used:
            parent, _, last = name.rpartition(".")
            delattr(module.get_submodule(parent), last)


def _decode_where_used(module: GraphModule) -> None:
    """Puts what decodes a weight right before what uses it: it comes first, and would travel across every cut."""
    for node in [node for node in module.graph.nodes if "dequantize_per_channel" in str(node.target)]:
        users = [user for user in module.graph.nodes if user in node.users]
        users[0].prepend(node)
    module.graph.lint()
    module.recompile()


def _finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(tensor.isfinite().all())
