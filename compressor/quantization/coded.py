"""Weights as codes of 8, 4, 2 or 1 bits and a scale for each row, or for each group of columns in a row."""

from typing import Final, Literal

import torch
from torch import Tensor, nn

from compressor.weights.packing import pack, unpack
from compressor.weights.stored import Store
from worker.errors import InvalidRequest

Bits = Literal[1, 2, 4, 8]

OFFSET: Final = {8: 128.0, 4: 8.0, 2: 1.0, 1: 0.5}
"""The code that stands for zero, by bits; of one bit, both codes are half a scale away from it."""

_LEAST_SCALE: Final = 1e-12
_KEPT: Final = 0.7
"""Weights below this share of the mean magnitude become zero (Li et al., "Ternary weight networks", 2016)."""
_NARROWER: Final = 24


class CodedWeight(Store):
    """A weight [rows, ...] that is (code - offset) * scale.

    codes: UINT8 [rows, bytes]. scale: FP32 [rows, groups]; a group is `group` columns, the last may be shorter.
    """

    def __init__(self, weight: Tensor, bits: Bits, group: int | None = None) -> None:
        super().__init__()
        flat = weight.detach().float().reshape(weight.shape[0], -1)
        if not bool(flat.isfinite().all()):
            raise InvalidRequest("a weight is not a finite number; it has no code")
        self.bits: Bits = bits
        self.shape = tuple(weight.shape)
        self._columns = flat.shape[1]
        self._group = min(group or self._columns, self._columns)
        self._dtype = weight.dtype
        missing = -self._columns % self._group
        grouped = nn.functional.pad(flat, (0, missing)).reshape(flat.shape[0], -1, self._group)
        real = nn.functional.pad(torch.ones_like(flat), (0, missing)).reshape(grouped.shape)
        codes, scale = encode(grouped, real, bits)
        self.codes: Tensor
        self.scale: Tensor
        self.register_buffer("codes", pack(codes.reshape(flat.shape[0], -1)[:, : self._columns], bits))
        self.register_buffer("scale", scale.squeeze(-1))

    def forward(self) -> Tensor:
        return self._decoded(self.codes, self.scale).reshape(self.shape)

    def rows(self, index: Tensor) -> Tensor:
        """index INT64 [n] → those rows, [n, columns]."""
        return self._decoded(self.codes.index_select(0, index), self.scale.index_select(0, index))

    def _decoded(self, codes: Tensor, scale: Tensor) -> Tensor:
        """codes UINT8 [rows, bytes], scale [rows, groups] → [rows, columns]."""
        numbers = unpack(codes, self.bits, self._columns).float() - OFFSET[self.bits]
        groups = scale.shape[1]
        if groups > 1:
            wide = scale.unsqueeze(-1).expand(-1, groups, self._group).reshape(codes.shape[0], -1)
            scale = wide[:, : self._columns]
        return (numbers * scale).to(self._dtype)


def encode(weight: Tensor, real: Tensor, bits: Bits) -> tuple[Tensor, Tensor]:
    """weight [rows, groups, columns] → codes, of the same shape, and scale [rows, groups, 1].

    real: 1 where there is a weight, 0 where the last group is filled up.
    """
    count = real.sum(-1, keepdim=True)
    mean = weight.abs().sum(-1, keepdim=True) / count
    if bits == 1:
        # The best scale of signs is the mean magnitude (Rastegari et al., "XNOR-Net", 2016); codes are half of it away.
        return (weight >= 0).to(torch.uint8), 2 * mean.clamp(min=_LEAST_SCALE)
    if bits == 2:
        kept = weight.abs() > _KEPT * mean
        scale = (weight.abs() * kept).sum(-1, keepdim=True) / kept.sum(-1, keepdim=True).clamp(min=1)
        return (torch.sign(weight) * kept + OFFSET[2]).to(torch.uint8), scale.clamp(min=_LEAST_SCALE)
    if bits == 8:
        return _rounded(weight, weight.abs().amax(-1, keepdim=True), bits)
    return _narrowed(weight, bits)


def _rounded(weight: Tensor, largest: Tensor, bits: Bits) -> tuple[Tensor, Tensor]:
    """Whole numbers of a scale by which `largest` is the largest one."""
    most = OFFSET[bits] - 1
    scale = (largest / most).clamp(min=_LEAST_SCALE)
    return (torch.round(weight / scale).clamp(-most, most) + OFFSET[bits]).to(torch.uint8), scale


def _narrowed(weight: Tensor, bits: Bits) -> tuple[Tensor, Tensor]:
    """The same with the range, up to half of the largest, that has the least squared error."""
    largest = weight.abs().amax(-1, keepdim=True)
    codes, scale = _rounded(weight, largest, bits)
    least = torch.full_like(scale, float("inf"))
    for part in range(_NARROWER + 1):
        tried, tried_scale = _rounded(weight, largest * (1 - part / (2 * _NARROWER)), bits)
        error = ((tried.float() - OFFSET[bits]) * tried_scale - weight).square().sum(-1, keepdim=True)
        better = error < least
        codes, scale = torch.where(better, tried, codes), torch.where(better, tried_scale, scale)
        least = torch.minimum(least, error)
    return codes, scale
