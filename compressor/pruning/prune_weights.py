"""Pruning of single weights: the least important become zero, anywhere, in blocks, or n of every m neighbours."""

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Final, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from compressor.pruning.masks import (
    RANDOM,
    Score,
    as_rows,
    block_scores,
    block_sizes,
    from_rows,
    keep_best,
    keep_best_of_rows,
    keep_n_of_m,
    spread,
)
from compressor.step import Change, Context, Phase, Step, none_gains, stored_bytes
from compressor.weights.stored import weight_of
from worker.errors import InvalidRequest

Side = Annotated[int, Field(ge=1, le=1024)]


class PruneWeights(Step):
    """Sets the least important weights to zero.

    It makes way for the sparse steps, which store zeros in less, and for `share_weights`, which keeps them. Whole
    blocks can run faster on CPUs; 2 of 4 is what GPUs have units for.

    Source: magnitude pruning, Han et al., 2015; n of m, Mishra et al., "Accelerating Sparse Deep Neural Networks",
    2021; blocks (group magnitude), Narang et al., 2017.
    Saves: nothing by itself, neither storage nor resident memory nor time: dense kernels multiply zeros at the same
    speed, and zeros take room. With `sparse`, storage.
    Device: any.

    sparsity: the share of weights that go.
    below: instead, weights (blocks) go that score less than this part of their layer's mean: what training with a
        penalty has driven towards zero.
    score: by which the least important are found: of single weights "l1" and "l2" are the magnitude; of blocks the mean
        magnitude and the root mean square. "random": drawn by the context's seed, the floor for the others.
    block: rows and columns that go together. Columns are inputs, of a convolution its input channels at one place of
        the kernel.
    n_of_m: instead, "2:4" keeps the best 2 of every 4 neighbouring inputs.
    among: where the least important are looked for: in "all" layers together, in each "layer", or the same share in
        each "row" (of blocks), which is rounded down.
    """

    phase: ClassVar[Phase] = Phase.WEIGHTS
    takes: ClassVar[tuple[type[nn.Module], ...]] = (nn.Linear, nn.Conv2d)
    kind: Literal["prune_weights"] = "prune_weights"
    sparsity: float | None = Field(default=None, gt=0, lt=1)
    below: float | None = Field(default=None, gt=0, lt=1)
    score: Score = "l1"
    block: tuple[Side, Side] = (1, 1)
    n_of_m: str | None = Field(default=None, pattern=r"^[1-9]\d?:[1-9]\d?$")
    among: Literal["all", "layer", "row"] = "layer"

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if sum(key is not None for key in (self.sparsity, self.below, self.n_of_m)) != 1:
            raise ValueError("give one of sparsity, below and n_of_m")
        if self.below is not None and (self.score == RANDOM or self.among != "layer"):
            raise ValueError("below compares norms within each layer; leave among out, and give l1 or l2 as the score")
        if self.n_of_m is not None:
            n, m = self.counts
            if n >= m:
                raise ValueError(f"n_of_m {self.n_of_m}: keeps all; n must be less than m")
            if self.block != (1, 1) or self.among != "layer":
                raise ValueError("n_of_m says which weights go together; leave block and among out")
        return self

    @property
    def counts(self) -> tuple[int, int]:
        n, _, m = (self.n_of_m or "1:1").partition(":")
        return int(n), int(m)

    def problem(self, model: nn.Module, steps: Sequence[Step]) -> str | None:
        return super().problem(model, steps) or self._too_small(model)

    def zeroed(self, model: nn.Module) -> frozenset[str]:
        return frozenset(self.fitting(model))

    def depends_on_values(self) -> bool:
        return self.below is not None or self.among == "all"

    def apply_(self, model: nn.Module, context: Context) -> list[Change]:
        layers = self.fitting(model)
        masks = self.masks(layers, context.seed)
        changes = []
        for name, layer in layers.items():
            mask_(layer, masks[name])
            size = stored_bytes(layer)
            share = float((weight_of(layer) == 0).double().mean())
            changes.append(Change(name, f"{share:.1%} of its weights are zero", size, size))
        return changes

    def fitting(self, model: nn.Module) -> dict[str, nn.Module]:
        """The layers that are pruned; those that are too small for it are not."""
        return {name: layer for name, layer in self.targets(model).items() if self._unfit(layer) is None}

    def masks(self, layers: Mapping[str, nn.Module], seed: int, sparsity: float | None = None) -> dict[str, Tensor]:
        """For each layer which weights stay, BOOL like its weight. `sparsity`: another than the step's own."""
        share = sparsity if sparsity is not None else self.sparsity
        rows = {name: as_rows(weight_of(layer).cpu()) for name, layer in layers.items()}
        for name, matrix in rows.items():
            if not bool(matrix.isfinite().all()):
                raise InvalidRequest(f"{name}: a weight is not a finite number")
        scores = {
            name: block_scores(matrix, self.block, self.score, seed=seed, name=name) for name, matrix in rows.items()
        }
        if self.below is not None:
            kept = {name: found >= self.below * found.mean() for name, found in scores.items()}
        elif share is None:
            kept = {name: keep_n_of_m(found, *self.counts) for name, found in scores.items()}
        elif self.among == "row":
            kept = {name: keep_best_of_rows(found, share) for name, found in scores.items()}
        else:
            sizes = {name: block_sizes(_shape(matrix), self.block) for name, matrix in rows.items()}
            together = [list(scores)] if self.among == "all" else [[name] for name in scores]
            kept = {}
            for names in together:
                kept |= keep_best({name: scores[name] for name in names}, {name: sizes[name] for name in names}, share)
        return {
            name: from_rows(spread(kept[name], self.block, _shape(matrix)), weight_of(layers[name]).shape)
            for name, matrix in rows.items()
        }

    def _too_small(self, model: nn.Module) -> str | None:
        reasons = {name: self._unfit(layer) for name, layer in self.targets(model).items()}
        return none_gains(reasons, self.layers, "no layer can be pruned so")

    def _unfit(self, layer: nn.Module) -> str | None:
        """Why the layer is left as it is."""
        shape = weight_of(layer).shape
        out, columns = shape[0], weight_of(layer)[0].numel()
        _, m = self.counts
        if shape[1] % m:
            return f"its {shape[1]} inputs are no multiple of {m}"
        rows, across = self.block
        blocks = -(-out // rows) * -(-columns // across)
        among = -(-columns // across) if self.among == "row" else blocks
        if self.sparsity is not None and self.among != "all" and int(self.sparsity * among + 1e-9) < 1:
            return f"it has {among} blocks of {rows} x {across}, of which {self.sparsity:.0%} is none: it is too small"
        return None


def mask_(layer: nn.Module, kept: Tensor) -> None:
    """Sets the weights that do not stay to zero, in place."""
    with torch.no_grad():
        weight = layer.weight
        if not isinstance(weight, Tensor):
            raise InvalidRequest(f"{type(layer).__name__} has no weight")
        weight.masked_fill_(~kept.to(weight.device), 0)


def _shape(matrix: Tensor) -> tuple[int, int]:
    return matrix.shape[0], matrix.shape[1]


WEIGHT_PRUNING: Final[tuple[type[Step], ...]] = (PruneWeights,)
