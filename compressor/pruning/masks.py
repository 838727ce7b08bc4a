"""Which weights go: scores of weights or of blocks of them, and masks that keep the best."""

from collections.abc import Mapping
from typing import Final, Literal

import torch
from torch import Tensor

from compressor.step import seeded

Score = Literal["l1", "l2", "random"]

RANDOM: Final = "random"


def block_scores(matrix: Tensor, block: tuple[int, int], score: Score, *, seed: int = 0, name: str = "") -> Tensor:
    """The score of each block of a matrix [m, n]: FP64 [ceil(m / rows), ceil(n / columns)].

    l1: the mean of its magnitudes; l2: the root of the mean of its squares; random: drawn from the seed and the name.
    Means, so that the smaller blocks at the edges are compared fairly; of single weights both are the magnitude.
    """
    rows, columns = block
    shape = (-(-matrix.shape[0] // rows), -(-matrix.shape[1] // columns))
    if score == RANDOM:
        return torch.rand(shape, generator=seeded(seed, name), dtype=torch.float64)
    values = matrix.detach().double()
    values = values.abs() if score == "l1" else values.square()
    sums = _block_sums(values, block)
    mean = sums / _block_sums(torch.ones_like(values), block)
    return mean if score == "l1" else mean.sqrt()


def keep_best(scores: Mapping[str, Tensor], sizes: Mapping[str, Tensor], sparsity: float) -> dict[str, Tensor]:
    """Which blocks stay, BOOL like the scores, when the worst `sparsity` of all weights in all the layers go.

    scores, sizes: by layer, each block's score and number of weights. Ties are broken by place: the first stay.
    """
    names = list(scores)
    every = torch.cat([scores[name].reshape(-1) for name in names])
    weights = torch.cat([sizes[name].reshape(-1) for name in names]).double()
    worst_first = every.flip(0).argsort(stable=True)
    order = every.numel() - 1 - worst_first
    gone = weights[order].cumsum(0) <= sparsity * weights.sum() + 1e-6
    kept = torch.ones_like(every, dtype=torch.bool)
    kept[order[gone]] = False
    parts = torch.split(kept, [scores[name].numel() for name in names])
    return {name: part.reshape(scores[name].shape) for name, part in zip(names, parts, strict=True)}


def keep_best_of_rows(scores: Tensor, sparsity: float) -> Tensor:
    """Which blocks stay when the same number goes from every row of blocks: BOOL [rows, blocks]."""
    count = scores.shape[1]
    gone = int(sparsity * count + 1e-9)
    order = count - 1 - scores.flip(1).argsort(dim=1, stable=True)
    kept = torch.ones_like(scores, dtype=torch.bool)
    return kept.scatter_(1, order[:, :gone], False)


def keep_n_of_m(scores: Tensor, n: int, m: int) -> Tensor:
    """BOOL [rows, columns]: of every m neighbours in a row the n with the highest scores; columns divide by m."""
    groups = scores.reshape(scores.shape[0], -1, m)
    best = groups.argsort(dim=-1, descending=True, stable=True)[..., :n]
    return torch.zeros_like(groups, dtype=torch.bool).scatter_(-1, best, True).reshape(scores.shape)


def spread(blocks: Tensor, block: tuple[int, int], shape: tuple[int, int]) -> Tensor:
    """A value a block → the same a weight: [m, n]."""
    wide = blocks.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
    return wide[: shape[0], : shape[1]]


def block_sizes(shape: tuple[int, int], block: tuple[int, int]) -> Tensor:
    """Weights in each block of a matrix of this shape."""
    return _block_sums(torch.ones(shape, dtype=torch.float64), block)


def as_rows(weight: Tensor) -> Tensor:
    """[out, in] or [out, in, height, width] → [out, (height * width *) in]: neighbours in a row are input channels."""
    return weight if weight.dim() == 2 else weight.permute(0, 2, 3, 1).flatten(1)


def from_rows(rows: Tensor, shape: torch.Size) -> Tensor:
    """What `as_rows` gave, back in the weight's shape."""
    if len(shape) == 2:
        return rows
    out, taken, height, width = shape
    return rows.reshape(out, height, width, taken).permute(0, 3, 1, 2)


def _block_sums(values: Tensor, block: tuple[int, int]) -> Tensor:
    rows, columns = block
    m, n = values.shape
    padded = torch.nn.functional.pad(values, (0, -n % columns, 0, -m % rows))
    return padded.reshape(-(-m // rows), rows, -(-n // columns), columns).sum((1, 3))
