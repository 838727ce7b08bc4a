"""Small whole numbers in a row of bytes: 8, 4, 2 or 1 bits each. Taking them out again is plain tensor arithmetic."""

import torch
from torch import Tensor, nn


def pack(numbers: Tensor, bits: int) -> Tensor:
    """numbers [rows, n], each from 0 to 2^bits - 1 → UINT8 [rows, ceil(n * bits / 8)], the first in the lowest bits."""
    per_byte = 8 // bits
    padded = nn.functional.pad(numbers, (0, -numbers.shape[1] % per_byte)).reshape(numbers.shape[0], -1, per_byte)
    shifts = torch.arange(per_byte) * bits
    return (padded.to(torch.int64) << shifts).sum(-1).to(torch.uint8)


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """packed UINT8 [rows, bytes] → UINT8 [rows, count]: what `pack` was given."""
    if bits == 8:
        return packed[:, :count]
    parts = [(packed >> shift) & (2**bits - 1) for shift in range(0, 8, bits)]
    return torch.stack(parts, dim=-1).reshape(packed.shape[0], -1)[:, :count]
