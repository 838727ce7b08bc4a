"""Layers that compute in a short float format and give what they are given: bf16, fp16, and fp8 on GPUs."""

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from worker.errors import InvalidRequest

FP8: Final = torch.float8_e4m3fn
_FP8_LARGEST: Final = 448.0
_LEAST_SCALE: Final = 1e-12


class ShortLinear(nn.Module):
    """x [..., in] → [..., out], of x's own type."""

    def __init__(self, layer: nn.Linear, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(shortened(layer.weight, dtype), requires_grad=False)
        self.bias = None if layer.bias is None else nn.Parameter(shortened(layer.bias, dtype), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x.to(self.weight.dtype), self.weight, self.bias).to(x.dtype)


class ShortConv2d(nn.Module):
    """x [batch, in, height, width] → [batch, out, height', width'], of x's own type."""

    def __init__(self, layer: nn.Conv2d, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(shortened(layer.weight, dtype), requires_grad=False)
        self.bias = None if layer.bias is None else nn.Parameter(shortened(layer.bias, dtype), requires_grad=False)
        self._how = (layer.stride, layer.padding, layer.dilation, layer.groups)

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(x.to(self.weight.dtype), self.weight, self.bias, *self._how).to(x.dtype)  # type: ignore[arg-type]


class ShortEmbedding(nn.Module):
    """ids INT [...] → [..., width], of the type that the layer had."""

    def __init__(self, layer: nn.Embedding, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(shortened(layer.weight, dtype), requires_grad=False)
        self._dtype = layer.weight.dtype

    def forward(self, ids: Tensor) -> Tensor:
        return functional.embedding(ids, self.weight).to(self._dtype)


class Fp8Linear(nn.Module):
    """x [..., in] → [..., out], of x's own type: e4m3 weights scaled per output, activations scaled per row.

    Source: Micikevicius et al., "FP8 formats for deep learning", 2022. CUDA, compute capability 8.9 and later; both
    sizes must be multiples of 16.
    """

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        weight = layer.weight.detach().float()
        scale = weight.abs().amax(1, keepdim=True).clamp(min=_LEAST_SCALE) / _FP8_LARGEST  # [out, 1]
        self.weight: Tensor
        self.scale: Tensor
        self.bias: Tensor | None
        self.register_buffer("weight", (weight / scale).to(FP8))  # [out, in]
        self.register_buffer("scale", scale.t().contiguous())  # [1, out]
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach().to(torch.bfloat16))

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1]).float()
        scale = rows.abs().amax(1, keepdim=True).clamp(min=_LEAST_SCALE) / _FP8_LARGEST  # [rows, 1]
        # On CUDA the left side must be row-major, the right one column-major, and the scales of rows contiguous.
        # Sums of fewer bits, which other inference stacks take too: full ones are said to be slower on Hopper.
        result = torch._scaled_mm(
            (rows / scale).to(FP8).contiguous(),
            self.weight.t(),
            scale.contiguous(),
            self.scale,
            bias=self.bias,
            out_dtype=torch.bfloat16,
            use_fast_accum=True,
        )
        return result.reshape(*x.shape[:-1], self.weight.shape[0]).to(x.dtype)


def short(layer: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The layer, computing in `dtype`."""
    match layer:
        case nn.Linear():
            return ShortLinear(layer, dtype)
        case nn.Conv2d(padding_mode="zeros"):
            return ShortConv2d(layer, dtype)
        case nn.Embedding():
            return ShortEmbedding(layer, dtype)
    raise InvalidRequest(f"{type(layer).__name__}: expected a Linear, a Conv2d with zero padding or an Embedding")


def shortened(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The weight in `dtype`. Raises InvalidRequest where a number is too large for it."""
    made = weight.detach().to(dtype)
    if not torch.equal(made.isfinite(), weight.detach().isfinite()):
        largest = float(weight.detach().abs().max())
        raise InvalidRequest(
            f"a weight of {largest:.3g} is too large for {dtype}; take bf16, whose range is that of fp32"
        )
    return made
