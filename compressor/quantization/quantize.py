"""Int8 for linear layers: weights scaled per output channel, activations per row at each call, both symmetric.

The product is `_int_mm` of two int8 matrices, which oneDNN computes with VNNI, and everything around it is plain
arithmetic on rows, which the compiler fuses into one pass before and one after. That is why the layer is our own: what
torchao captures for the same arithmetic quantizes in the shape of the input, with an unsigned copy and a correction,
and is slower by a seventh on MiniLM. The method is dynamic quantization as in LLM.int8()
(Dettmers et al., 2022), without its outlier columns.
"""

from typing import Final

import torch
from torch import nn
from torch.nn import functional

from worker.program import Program, Ref, Step

INT8_OPERATOR: Final = "aten::_int_mm"
"""The operator that a captured int8 linear layer has."""

_CONVOLUTIONS: Final = frozenset({"aten::conv2d", "aten::convolution"})
_DEQUANTIZE: Final = "quantized_decomposed::dequantize"
_LARGEST: Final = 127
_LEAST_SCALE: Final = 1e-12

CUDA_ROWS: Final = 32
"""A multiple that is no less than what `worker.gpu` says of CUDA's kernel."""


class Int8Linear(nn.Module):
    """A linear layer in int8: x [..., in] → [..., out], of x's own type.

    rows, side: what is multiplied is filled up with zeros, to a multiple of so many rows, and the weight to multiples
    of so many inputs and outputs: for kernels that take no others.
    """

    def __init__(self, layer: nn.Linear, *, rows: int = 1, side: int = 1) -> None:
        super().__init__()
        weight = layer.weight.detach().float()
        scale = weight.abs().amax(1).clamp(min=_LEAST_SCALE) / _LARGEST  # [out]
        small = torch.round(weight / scale[:, None]).to(torch.int8)
        self.weight: torch.Tensor
        self.scale: torch.Tensor
        self.bias: torch.Tensor | None
        self.register_buffer("weight", functional.pad(small, (0, -small.shape[1] % side, 0, -small.shape[0] % side)))
        self.register_buffer("scale", scale)
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach().float())
        self._rows = rows
        self._filled = rows > 1 or self.weight.shape != layer.weight.shape

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1]).float()  # [rows, in]
        scale = rows.abs().amax(1, keepdim=True).clamp(min=_LEAST_SCALE) * (1 / _LARGEST)  # [rows, 1]
        small = torch.round(rows * scale.reciprocal()).to(torch.int8)
        # One product of the two scales, not two multiplications in turn: the compiler knows the latter as a pattern and
        # replaces it by an operator that takes unsigned input only, and is a thousand times slower on this.
        result = self._product(small).float() * (scale * self.scale)
        if self.bias is not None:
            result = result + self.bias
        return result.reshape(*x.shape[:-1], self.scale.shape[0]).to(x.dtype)

    def _product(self, small: torch.Tensor) -> torch.Tensor:
        """small INT8 [rows, in] → INT32 [rows, out]."""
        if not self._filled:
            return torch._int_mm(small, self.weight.t())
        count, columns = small.shape[0], self.weight.shape[1] - small.shape[1]
        # Row-major: cuBLAS has no product of a transposed left side.
        whole = functional.pad(small, (0, columns, 0, -count % self._rows)).contiguous()
        return torch._int_mm(whole, self.weight.t())[:count, : self.scale.shape[0]]


def int8_layers(program: Program) -> int:
    """How many int8 matrix products a program has."""
    return sum(operator_name(step) == INT8_OPERATOR for step in program.steps)


def int8_convolutions(program: Program) -> int:
    """How many convolutions of a program have both their input and their weight from int8."""
    made = {name: operator_name(step) for step in program.steps for name in step.outputs}

    def from_int8(value: object) -> bool:
        return isinstance(value, Ref) and made.get(value.name, "").startswith(_DEQUANTIZE)

    return sum(operator_name(step) in _CONVOLUTIONS and all(map(from_int8, step.args[:2])) for step in program.steps)


def operator_name(step: Step) -> str:
    """The name with its namespace, such as aten::conv2d; empty for what is no operator of PyTorch's."""
    return step.operator._schema.name if isinstance(step.operator, torch._ops.OpOverload) else ""
