"""Weights that are mostly zeros, in less room: what is not zero and where it is, as plain dense tensors.

Three layouts: compressed rows (CSR), compressed rows of blocks (BSR), in which a column of blocks is named once for all
of a block's weights, and n of every m neighbours with their places among the m. Each is decoded to the dense weight by
plain arithmetic. See `compressor.sparsity.block_linear` for blocks that are multiplied as they are.
"""

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from compressor.pruning.masks import as_rows, from_rows
from compressor.weights.packing import pack, unpack
from compressor.weights.stored import Store
from worker.errors import InvalidRequest

_SMALL: Final = 2**15


class CsrWeight(Store):
    """values [n]; columns INT16 or INT32 [n]; ends INT32 [rows]: where each row's values end."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.shape = tuple(weight.shape)
        matrix = as_rows(weight)
        self._columns = matrix.shape[1]
        rows, columns = matrix.nonzero(as_tuple=True)
        self.values = nn.Parameter(matrix[rows, columns].contiguous())
        self.columns: Tensor
        self.ends: Tensor
        self.register_buffer("columns", _small(columns, self._columns))
        self.register_buffer("ends", torch.bincount(rows, minlength=matrix.shape[0]).cumsum(0).to(torch.int32))

    def forward(self) -> Tensor:
        count = self.values.shape[0]
        row = _rows(self.ends, count)
        flat = torch.zeros(self.shape[0] * self._columns, dtype=self.values.dtype, device=self.values.device)
        rows = flat.scatter(0, row * self._columns + self.columns, self.values).reshape(self.shape[0], -1)
        return from_rows(rows, torch.Size(self.shape))


class BsrWeight(Store):
    """values [n, rows of a block, columns of a block]; columns INT16 or INT32 [n], of blocks; ends INT32 [rows of
    blocks]. The weight is padded with zeros to whole blocks.
    """

    def __init__(self, weight: Tensor, block: tuple[int, int]) -> None:
        super().__init__()
        self.shape = tuple(weight.shape)
        self._block = block
        tiles = as_tiles(as_rows(weight), block)  # [rows of blocks, columns of blocks, rows, columns]
        self._across = tiles.shape[1]
        rows, columns = (tiles != 0).any(-1).any(-1).nonzero(as_tuple=True)
        self.values = nn.Parameter(tiles[rows, columns].contiguous())
        self.columns: Tensor
        self.ends: Tensor
        self.register_buffer("columns", _small(columns, self._across))
        self.register_buffer("ends", torch.bincount(rows, minlength=tiles.shape[0]).cumsum(0).to(torch.int32))

    def forward(self) -> Tensor:
        down, (high, wide) = self.ends.shape[0], self._block
        index = _rows(self.ends, self.values.shape[0]) * self._across + self.columns  # [n], the block that each is
        blocks = torch.zeros(down * self._across, high * wide, dtype=self.values.dtype, device=self.values.device)
        blocks = blocks.index_copy(0, index, self.values.reshape(-1, high * wide))
        matrix = (
            blocks.reshape(down, self._across, high, wide).transpose(1, 2).reshape(down * high, self._across * wide)
        )
        columns = 1
        for size in self.shape[1:]:
            columns *= size
        return from_rows(matrix[: self.shape[0], :columns], torch.Size(self.shape))


class NofMWeight(Store):
    """values [rows, n of each group]; places UINT8 [rows, bytes]: where among its m neighbours each stands, packed.

    Rows are as `compressor.pruning.masks.as_rows` has them.

    Raises:
        InvalidRequest: more than n of some m neighbours are not zero.
    """

    def __init__(self, weight: Tensor, n: int, m: int) -> None:
        super().__init__()
        self.shape = tuple(weight.shape)
        self._n, self._m = n, m
        groups = as_rows(weight).reshape(weight.shape[0], -1, m)
        if int((groups != 0).sum(-1).max()) > n:
            raise InvalidRequest(f"more than {n} of some {m} neighbours are not zero; prune them with n_of_m first")
        places = (groups != 0).int().argsort(dim=-1, descending=True, stable=True)[..., :n]
        self.values = nn.Parameter(groups.gather(-1, places).flatten(1).contiguous())
        self._bits = next(bits for bits in (1, 2, 4, 8) if 2**bits >= m)
        self.places: Tensor
        self.register_buffer("places", pack(places.flatten(1), self._bits))

    def forward(self) -> Tensor:
        rows, count = self.values.shape
        places = unpack(self.places, self._bits, count).long().reshape(rows, -1, self._n)
        groups = torch.zeros(rows, count // self._n, self._m, dtype=self.values.dtype, device=self.values.device)
        whole = groups.scatter(-1, places, self.values.reshape(places.shape)).flatten(1)
        return from_rows(whole, torch.Size(self.shape))


def as_tiles(matrix: Tensor, block: tuple[int, int]) -> Tensor:
    """[m, n] → [rows of blocks, columns of blocks, rows, columns], padded with zeros."""
    high, wide = block
    m, n = matrix.shape
    padded = functional.pad(matrix, (0, -n % wide, 0, -m % high))
    return padded.reshape(padded.shape[0] // high, high, padded.shape[1] // wide, wide).transpose(1, 2)


def _rows(ends: Tensor, count: int) -> Tensor:
    """INT64 [count]: the row that each value is in, of rows that end there: as many as have ended before it.

    By counting, since `searchsorted` compiled for a GPU gave rows that are not there (PyTorch 2.13).
    """
    marks = torch.zeros(count + 1, dtype=torch.int64, device=ends.device)
    return marks.scatter_add(0, ends.long(), torch.ones_like(ends, dtype=torch.int64))[:count].cumsum(0)


def _small(index: Tensor, below: int) -> Tensor:
    return index.to(torch.int16 if below <= _SMALL else torch.int32)
