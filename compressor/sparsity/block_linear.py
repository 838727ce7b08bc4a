"""A linear layer that multiplies only the blocks of its weight that are not all zero."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from compressor.sparsity.sparse_weight import as_tiles
from compressor.weights.stored import weight_of


class BlockLinear(nn.Module):
    """x [..., in] → [..., out]: one batched product of gathered inputs and blocks (the ELLPACK layout).

    values [rows of blocks, in a block-row's inputs, rows of a block]; columns INT32 [rows of blocks * fullest], of
    blocks. Rows with fewer blocks than the fullest are padded with blocks of zeros.
    """

    def __init__(self, layer: nn.Linear, block: tuple[int, int]) -> None:
        super().__init__()
        high, wide = block
        weight = weight_of(layer)
        tiles = as_tiles(weight, block)
        down, across = tiles.shape[:2]
        used = (tiles != 0).any(-1).any(-1)  # [down, across]
        fullest = max(1, int(used.sum(1).max()))
        columns = used.int().argsort(dim=1, descending=True, stable=True)[:, :fullest]
        taken = tiles.gather(1, columns[..., None, None].expand(-1, -1, high, wide))  # [down, fullest, high, wide]
        self.values = nn.Parameter(taken.permute(0, 1, 3, 2).reshape(down, fullest * wide, high).contiguous())
        self.columns: Tensor
        self.register_buffer("columns", columns.reshape(-1).to(torch.int32))
        self.bias = layer.bias
        self._block, self._down, self._across = block, down, across
        self._in, self._out = weight.shape[1], weight.shape[0]

    def forward(self, x: Tensor) -> Tensor:
        high, wide = self._block
        rows = x.reshape(-1, self._in)
        if self._across * wide != self._in:
            rows = functional.pad(rows, (0, self._across * wide - self._in))
        parts = rows.reshape(-1, self._across, wide).transpose(0, 1)  # [across, n, wide]
        taken = parts.index_select(0, self.columns)  # [down * fullest, n, wide]
        taken = (
            taken.reshape(self._down, -1, rows.shape[0], wide).transpose(1, 2).reshape(self._down, rows.shape[0], -1)
        )
        given = torch.bmm(taken, self.values)  # [down, n, high]
        y = given.transpose(0, 1).reshape(rows.shape[0], self._down * high)[:, : self._out]
        y = y if self.bias is None else y + self.bias
        return y.reshape(*x.shape[:-1], self._out)
