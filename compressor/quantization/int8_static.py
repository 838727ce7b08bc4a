"""The step that puts linear layers and convolutions into int8 with scales found beforehand."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from compressor.model import Model
from compressor.quantization.formats import claimed_twice
from compressor.quantization.static_graph import quantize_convolutions
from compressor.quantization.static_linear import Int8StaticLinear, input_ranges
from compressor.step import Change, Context, GraphStep, Replaced, Step, changes_of, replace_layer_, stored_bytes
from compressor.weights.stored import Ties
from worker.processor import saturates_int8_here


class Int8Static(GraphStep):
    """Int8 weights scaled per output channel, and int8 activations with one scale each, from calibration data.

    Convolutions are done on the captured graph, with batch norms folded in (see
    `compressor.quantization.static_graph`); for linear layers the range of least squared error is taken.

    Source: Jacob et al., "Quantization and training of neural networks for efficient integer-arithmetic-only
    inference", 2018.
    Saves: three quarters of these layers' storage and resident memory; time in compiled stages only, most for
    convolutions on processors with VNNI.
    Device: CPU.

    activation_bits: of what convolutions take. 7 where a processor without VNNI computes them: oneDNN adds two products
    up in 16 bits there, which saturate with 8. By default what is right for this machine; a recipe keeps it.
    """

    takes: ClassVar[tuple[type[nn.Module], ...]] = (nn.Linear, nn.Conv2d)
    devices: ClassVar[frozenset[str]] = frozenset({"cpu"})
    unsaid: ClassVar[Mapping[str, Any]] = {"activation_bits": 8}
    kind: Literal["int8_static"] = "int8_static"
    activation_bits: Literal[7, 8] = Field(default_factory=lambda: 7 if saturates_int8_here() else 8)

    def problem(self, model: nn.Module, steps: Sequence[Step]) -> str | None:
        return super().problem(model, steps) or claimed_twice(self, model, steps) or self._too_long(model)

    def _too_long(self, model: nn.Module) -> str | None:
        for name, layer in self.targets(model).items():
            if isinstance(layer, nn.Conv2d) and layer.weight.dtype is torch.float64:
                return (
                    f"{name}: its weight is {layer.weight.dtype}, and int8 convolutions give at most float32; make the "
                    f'model .float() first, or leave the layer out: layers: ["*", "!{name}"]'
                )
        return None

    def needs_calibration(self) -> bool:
        return True

    def apply_(self, model: nn.Module, context: Context) -> list[Change]:
        linears = {name: layer for name, layer in self.targets(model).items() if isinstance(layer, nn.Linear)}
        done, ties = [], Ties()
        for name, largest in input_ranges(model, linears, context.calibration).items():
            layer = linears[name]
            new = Int8StaticLinear(layer, largest)
            twin = ties.twin(layer)
            if isinstance(twin, Int8StaticLinear):
                new.weight = twin.weight  # scales are each one's own, as what the layers take is
            replace_layer_(model, layer, new)
            ties.add(layer, new)
            done.append(Replaced(name, f"{self.kind}, ±{largest:.4g}", layer, new))
        return changes_of(model, done)

    def apply_graph(self, model: nn.Module, context: Context) -> tuple[nn.Module, list[Change]]:
        convolutions = {name: layer for name, layer in self.targets(model).items() if isinstance(layer, nn.Conv2d)}
        if not convolutions:
            return model, []
        given = Model(model, context.inputs, axes=context.axes)
        made, found = quantize_convolutions(
            given, convolutions, context.calibration, activation_bits=self.activation_bits
        )
        return made, [Change(name, self.kind, stored_bytes(convolutions[name]), after) for name, after in found.items()]
