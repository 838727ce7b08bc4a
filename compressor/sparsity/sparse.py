"""Sparse representation: pruned layers hold what is not zero, and multiply without the zeros where that is faster."""

from collections.abc import Sequence
from typing import ClassVar, Final, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from compressor.profiling.faster import fastest
from compressor.pruning.masks import as_rows
from compressor.pruning.prune_weights import Side
from compressor.sparsity.block_linear import BlockLinear
from compressor.sparsity.sparse_weight import BsrWeight, CsrWeight, NofMWeight
from compressor.step import (
    Change,
    Context,
    Phase,
    Replaced,
    Step,
    changes_of,
    none_gains,
    replace_layer_,
    seeded,
    selected,
)
from compressor.weights.stored import Store, Stored, Ties, dense_bytes, stored, taken_later, unstorable, weight_of
from worker.errors import InvalidRequest


class Sparse(Step):
    """Stores layers that were pruned without their zeros.

    Source: CSR and BSR as in Saad, "Iterative Methods for Sparse Linear Systems", section 3.4; ELLPACK for products of
    blocks.
    Saves: storage: CSR from a third of zeros on (6 bytes a weight that is left), BSR in proportion to the blocks that
    are gone, 2 of 4 by 47 %. With whole blocks of zeros also resident memory and time, where packaging measures it to
    be so.
    Device: any.

    At run time a layer is dense, its weight decoded at each call, which saves resident memory and costs time; or, with
    whole blocks of zeros in a linear layer, its blocks are multiplied as they are: time and memory go with what is
    left, on CPUs from about half of zeros on with blocks such as 64 x 16. Which of the two is faster uncompiled is
    measured here, on one thread. A stage that is compiled is measured again when it is packaged, as it is and with all
    its weights decoded once and for all, and the faster one is kept (`compressor.packaging.stage_runtime`; `decoded` in
    the manifest's figures): its time is then that of the dense layer, and so is its memory; storage stays saved.

    layout: "csr", "bsr" with `block` (rows, columns), or "n_of_m" with `n_of_m`.
    run: uncompiled. "measured": whichever was faster. "dense", "blocks": that one.
    as_blocks: with "measured", the layers that were faster as blocks: a manifest names them, and its recipe measures
        nothing, and gives the same on every machine.
    rows: vectors that the layer takes at once while it is measured (a batch's tokens).
    """

    phase: ClassVar[Phase] = Phase.WEIGHTS
    takes: ClassVar[tuple[type[nn.Module], ...]] = (nn.Linear, nn.Conv2d)
    kind: Literal["sparse"] = "sparse"
    layout: Literal["csr", "bsr", "n_of_m"] = "csr"
    block: tuple[Side, Side] | None = None
    n_of_m: str | None = Field(default=None, pattern=r"^[1-9]\d?:[1-9]\d?$")
    run: Literal["measured", "dense", "blocks"] = "measured"
    as_blocks: tuple[str, ...] | None = None
    rows: int = Field(default=128, ge=1, le=65_536)

    @model_validator(mode="after")
    def _keys_of_the_layout(self) -> Self:
        if (self.layout == "bsr") != (self.block is not None):
            raise ValueError('block (rows, columns) goes with the layout "bsr", and only with it')
        if (self.layout == "n_of_m") != (self.n_of_m is not None):
            raise ValueError('n_of_m, such as "2:4", goes with the layout "n_of_m", and only with it')
        if self.run == "blocks" and self.layout != "bsr":
            raise ValueError('only the layout "bsr" can be multiplied as blocks')
        if self.as_blocks is not None and (self.layout != "bsr" or self.run != "measured"):
            raise ValueError('as_blocks says what was measured: it goes with the layout "bsr" and run: measured')
        return self

    def problem(self, model: nn.Module, steps: Sequence[Step]) -> str | None:
        return super().problem(model, steps) or self._too_dense(model, steps) or taken_later(self, model, steps)

    def apply_(self, model: nn.Module, context: Context) -> list[Change]:
        able = {name: layer for name, layer in self.targets(model).items() if self._loses(layer) is None}
        if not able:
            name, layer = next(iter(self.targets(model).items()))
            raise InvalidRequest(f"no layer gains by it; {name}: {self._loses(layer)}")
        done, ties = [], Ties()
        for name, layer in able.items():
            twin = ties.twin(layer)
            new, what = self._made(name, layer, context) if twin is None else self._made_like(layer, twin)
            replace_layer_(model, layer, new)
            ties.add(layer, new)
            zeros = float((weight_of(layer) == 0).double().mean())
            done.append(Replaced(name, f"{zeros:.1%} zeros; {what}", layer, new))
        return changes_of(model, done)

    def settled(self, model: nn.Module) -> Step:
        if self.block is None or self.run != "measured":
            return self
        blocks = (name for name, layer in model.named_modules() if isinstance(layer, BlockLinear))
        return self.model_copy(update={"as_blocks": tuple(name for name in blocks if selected(name, self.layers))})

    def _made(self, name: str, layer: nn.Module, context: Context) -> tuple[nn.Module, str]:
        """The layer in its sparse form, and how it runs and why."""
        dense = stored(layer, self._store(weight_of(layer)))
        if self.block is None or not isinstance(layer, nn.Linear):
            return dense, "dense at run time: only blocks of linear layers are multiplied as they are"
        if self.run == "dense":
            return dense, "dense at run time, as asked for"
        blocks = BlockLinear(layer, self.block)
        if self.as_blocks is not None:
            return (blocks, "blocks at run time, as before") if name in self.as_blocks else (dense, "dense, as before")
        if self.run == "blocks":
            return blocks, "blocks at run time, as asked for"
        example = torch.randn(self.rows, layer.in_features, generator=seeded(context.seed, name)).to(layer.weight.dtype)
        on = context.target if context.target != "cpu" and torch.cuda.is_available() else "cpu"
        found = fastest({"blocks": blocks.to(on), "dense": dense.to(on)}, example.to(on), device=on)
        blocks.to("cpu")
        dense.to("cpu")
        times = f"blocks {found.seconds['blocks'] * 1e6:.0f} µs, dense {found.seconds['dense'] * 1e6:.0f} µs"
        told = f"{found.name} at run time: {times} for {self.rows} rows on {on}"
        return (blocks if found.name == "blocks" else dense), told

    def _made_like(self, layer: nn.Module, twin: nn.Module) -> tuple[nn.Module, str]:
        """The same for a layer with the weight of the one that `twin` took the place of: they go on sharing it."""
        what = "as the layer that has the same weight"
        if isinstance(twin, Stored):
            return stored(layer, twin.store), what
        blocks = BlockLinear(layer, self.block or (1, 1))  # type: ignore[arg-type]  # only linear layers become blocks
        blocks.values, blocks.columns = twin.values, twin.columns  # type: ignore[assignment]
        return blocks, what

    def _store(self, weight: Tensor) -> Store:
        if self.block is not None:
            return BsrWeight(weight, self.block)
        return NofMWeight(weight, *self._counts()) if self.n_of_m is not None else CsrWeight(weight)

    def _counts(self) -> tuple[int, int]:
        n, _, m = (self.n_of_m or "2:4").partition(":")
        return int(n), int(m)

    def _too_dense(self, model: nn.Module, steps: Sequence[Step]) -> str | None:
        """Nothing is known yet of layers that an earlier step prunes."""
        earlier = steps[: next((place for place, other in enumerate(steps) if other is self), 0)]
        pruned = {name for other in earlier for name in other.zeroed(model)}
        targets = self.targets(model)
        if not pruned.isdisjoint(targets):
            return None
        reasons = {name: self._loses(layer) for name, layer in targets.items()}
        return none_gains(reasons, (), "no layer gains by it")

    def _loses(self, layer: nn.Module) -> str | None:
        """Why a layer is left as it is."""
        weight = weight_of(layer)
        zeros = float((weight == 0).double().mean())
        if self.n_of_m is not None:
            n, m = self._counts()
            if weight.shape[1] % m or int((as_rows(weight).reshape(-1, m) != 0).sum(1).max()) > n:
                return f"it is not {self.n_of_m}: {zeros:.0%} zeros elsewhere; prune it first"
        after = sum(tensor.numel() * tensor.element_size() for tensor in self._store(weight).state_dict().values())
        if after >= dense_bytes(layer):
            return f"{zeros:.0%} zeros would take {after} bytes instead of {dense_bytes(layer)}; prune it first"
        return unstorable(layer)


SPARSE: Final[tuple[type[Step], ...]] = (Sparse,)
