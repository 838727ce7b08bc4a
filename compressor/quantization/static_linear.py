"""Int8 for linear layers whose activations have one scale, found beforehand from calibration data."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor, nn

from compressor.capture import without_fast_path
from worker.errors import InvalidRequest

_LARGEST: Final = 127
_LEAST_SCALE: Final = 1e-12
_BINS: Final = 4096
_NARROWEST: Final = 0.2
_TRIED: Final = 81


class Int8StaticLinear(nn.Module):
    """A linear layer in int8: x [..., in] → [..., out], of x's own type. `largest`: magnitude that becomes 127."""

    def __init__(self, layer: nn.Linear, largest: float) -> None:
        super().__init__()
        weight = layer.weight.detach().float()
        rows = weight.abs().amax(1).clamp(min=_LEAST_SCALE) / _LARGEST  # [out]
        self.step = max(largest, _LEAST_SCALE) / _LARGEST
        self.weight: Tensor
        self.scale: Tensor
        self.bias: Tensor | None
        self.register_buffer("weight", torch.round(weight / rows[:, None]).to(torch.int8))  # [out, in]
        self.register_buffer("scale", rows * self.step)
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach().float())

    def extra_repr(self) -> str:
        return f"step={self.step:.6g}"

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1]).float()  # [rows, in]
        small = torch.round(rows * (1 / self.step)).clamp(-_LARGEST, _LARGEST).to(torch.int8)
        result = torch._int_mm(small, self.weight.t()).float() * self.scale
        if self.bias is not None:
            result = result + self.bias
        return result.reshape(*x.shape[:-1], self.weight.shape[0]).to(x.dtype)


def input_ranges(
    model: nn.Module, layers: Mapping[str, nn.Module], batches: Sequence[tuple[Tensor, ...]]
) -> dict[str, float]:
    """For each layer the magnitude that should become the largest int8: the one of the least squared error.

    Runs the model twice over the batches: once for the largest magnitudes, once for histograms below them. Layers that
    never run are left out.

    Raises:
        InvalidRequest: a layer gets what is not a finite number.
    """
    largest: dict[str, float] = {}

    def see_largest(name: str, x: Tensor) -> None:
        found = float(x.abs().max()) if x.numel() else 0.0
        if not math.isfinite(found):
            raise InvalidRequest(f"calibration data give the layer {name} what is not a finite number")
        largest[name] = max(largest.get(name, 0.0), found)

    counts: dict[str, Tensor] = {}

    def see_counts(name: str, x: Tensor) -> None:
        found = torch.histc(x.detach().float().abs(), _BINS, 0.0, max(largest[name], _LEAST_SCALE)).double()
        counts[name] = counts[name] + found if name in counts else found

    for see in (see_largest, see_counts):
        with torch.no_grad(), without_fast_path(), _watched(layers, see):
            for batch in batches:
                model(*batch)
    return {name: _best(counts[name], value) for name, value in largest.items()}


@contextmanager
def _watched(layers: Mapping[str, nn.Module], see: Any) -> Iterator[None]:
    """Calls see(name, input) whenever one of the layers runs."""
    hooks = [
        layer.register_forward_pre_hook(lambda _, inputs, name=name: see(name, inputs[0]))
        for name, layer in layers.items()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _best(counts: Tensor, largest: float) -> float:
    """counts [_BINS] of magnitudes from 0 to `largest` → the magnitude to cut at."""
    if largest <= 0:
        return 1.0
    middles = (torch.arange(_BINS, dtype=torch.float64) + 0.5) * (largest / _BINS)
    best, least = largest, float("inf")
    for part in torch.linspace(_NARROWEST, 1.0, _TRIED, dtype=torch.float64).tolist():
        step = part * largest / _LARGEST
        found = (middles / step).round().clamp(max=_LARGEST) * step
        # Within a step, errors are spread evenly: their mean square is a twelfth of its own.
        error = torch.where(middles > part * largest, (found - middles).square(), step * step / 12)
        total = float((error * counts).sum())
        if total < least:
            best, least = part * largest, total
    return best
