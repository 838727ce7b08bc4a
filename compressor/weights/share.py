"""Weight sharing: a layer's weights are replaced by a few values, and stored as indices and those values."""

from collections.abc import Sequence
from typing import ClassVar, Final, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from compressor.step import Change, Context, Phase, Replaced, Step, changes_of, none_gains, replace_layer_
from compressor.weights.packing import pack, unpack
from compressor.weights.stored import (
    MANY_ZEROS,
    STORABLE,
    Store,
    Stored,
    Ties,
    dense_bytes,
    stored,
    taken_later,
    unstorable,
    weight_of,
    zeros_problem,
)
from worker.errors import InvalidRequest

_ROUNDS: Final = 60


class ShareWeights(Step):
    """k-means codebooks: every weight becomes one of 2^bits values of its layer, or of its group of rows.

    Fine-tuning moves the values and keeps the indices. Weights are looked up when they are used, as those of
    `compressor.quantization.formats.WeightOnly` are decoded.

    Source: Han, Mao, Dally, "Deep Compression", 2016, section 3, with linearly spaced first centroids.
    Saves: storage (`bits` instead of 32 a weight, and the codebook); resident memory of embeddings, and of all
    uncompiled; no time, and compiled code that looks up at each run costs some.
    Device: any.

    bits: of an index: 1, 2, 4 or 8. Where many weights are zero, zero is one of the values, and a pruned layer stays
        pruned; two values cannot do that, so 1 bit is refused there.
    group_rows: so many rows (output channels) have a codebook of their own; None: the whole layer has one.
    """

    phase: ClassVar[Phase] = Phase.WEIGHTS
    takes: ClassVar[tuple[type[nn.Module], ...]] = STORABLE
    kind: Literal["share_weights"] = "share_weights"
    bits: Literal[1, 2, 4, 8] = 4
    group_rows: int | None = Field(default=None, ge=1)

    def problem(self, model: nn.Module, steps: Sequence[Step]) -> str | None:
        return (
            super().problem(model, steps)
            or self._too_small(model)
            or taken_later(self, model, steps)
            or (self._brings_zeros_back(model, steps) if self.bits == 1 else None)
        )

    def apply_(self, model: nn.Module, context: Context) -> list[Change]:
        done, ties = [], Ties()
        for name, layer in self.targets(model).items():
            if self._loses(layer):
                continue
            context.say(f"sharing the weights of {name}")
            twin = ties.twin(layer)
            if isinstance(twin, Stored) and isinstance(twin.store, SharedWeight):
                store = twin.store
            else:
                store = SharedWeight(weight_of(layer), self.bits, self.group_rows)
            new = stored(layer, store)
            replace_layer_(model, layer, new)
            ties.add(layer, new)
            what = f"{self.bits}-bit indices, {store.groups} codebook{'s' * (store.groups > 1)} of {2**self.bits}"
            done.append(Replaced(name, what, layer, new))
        return changes_of(model, done)

    def _brings_zeros_back(self, model: nn.Module, steps: Sequence[Step]) -> str | None:
        able = {name: layer for name, layer in self.targets(model).items() if self._loses(layer) is None}
        return zeros_problem(self, steps, model, able, instead="bits: 2")

    def _too_small(self, model: nn.Module) -> str | None:
        reasons = {name: self._loses(layer) for name, layer in self.targets(model).items()}
        return none_gains(reasons, self.layers, "no layer gains by it")

    def _loses(self, layer: nn.Module) -> str | None:
        """Why the layer is left as it is."""
        weight = weight_of(layer)
        numbers, rows = weight.numel(), weight.shape[0]
        together = min(self.group_rows or rows, rows)
        groups = -(-rows // together)
        each = together * (numbers // rows)
        after = groups * (-(-each * self.bits // 8) + 4 * 2**self.bits)
        if after >= dense_bytes(layer):
            return (
                f"its {numbers} weights would take {after} bytes instead of {dense_bytes(layer)}: it is too small for "
                f"{groups} codebooks of {2**self.bits}"
            )
        return unstorable(layer)


class SharedWeight(Store):
    """A weight as packed indices into codebooks.

    indices: UINT8 [groups, bytes], 8/bits indices a byte, the first one in the lowest bits.
    codebook: [groups, 2^bits], of the weight's type; a parameter, so that it can be trained.
    """

    def __init__(self, weight: Tensor, bits: int, group_rows: int | None = None) -> None:
        super().__init__()
        self.bits = bits
        self.shape = tuple(weight.shape)
        self._rows = min(group_rows or self.shape[0], self.shape[0])
        self._columns = weight[0].numel()
        found = [cluster(part.reshape(-1), 2**bits) for part in torch.split(weight, self._rows)]
        self.groups = len(found)
        longest = self._rows * self._columns
        self.indices: Tensor
        self.register_buffer(
            "indices",
            pack(torch.stack([nn.functional.pad(index, (0, longest - index.numel())) for _, index in found]), bits),
        )
        self.codebook = nn.Parameter(torch.stack([values for values, _ in found]).to(weight.dtype))

    def forward(self) -> Tensor:
        index = unpack(self.indices, self.bits, self._rows * self._columns).int()
        weights = self._values(index, torch.arange(self.groups, device=index.device).unsqueeze(1))
        return weights.reshape(-1)[: self.shape[0] * self._columns].reshape(self.shape)

    def rows(self, index: Tensor) -> Tensor:
        """index INT64 [n] → [n, columns]."""
        per_byte = 8 // self.bits
        if self.groups > 1 or self._columns % per_byte:
            group = index // self._rows
            first = (index - group * self._rows) * self._columns  # [n], place within the group
            place = first.unsqueeze(1) + torch.arange(self._columns, device=index.device)  # [n, columns]
            width = self.indices.shape[1]
            packed = self.indices.reshape(-1).index_select(
                0, (group.unsqueeze(1) * width + place // per_byte).reshape(-1)
            )
            shift = (place % per_byte * self.bits).to(torch.uint8)
            found = (packed.reshape(place.shape) >> shift) & (2**self.bits - 1)
            return self._values(found.int(), group.unsqueeze(1))
        packed = self.indices.reshape(self.shape[0], -1).index_select(0, index)
        return self._values(unpack(packed, self.bits, self._columns).int(), None)

    def _values(self, index: Tensor, group: Tensor | None) -> Tensor:
        """index INT32 [n, m], group INT64 [n, 1] → [n, m]."""
        if self.groups > 1 and group is not None:
            index = index + (group * 2**self.bits).int()
        return self.codebook.reshape(-1).index_select(0, index.reshape(-1)).reshape(index.shape)


def cluster(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """`count` values that stand for `values` [n] with little squared error, and for each the index of its one.

    Lloyd's algorithm on the sorted values: a round looks only at the borders between clusters. Exact zeros that are
    many keep zero as their value. Where there are at most `count` different values, they are kept as they are.

    Returns: values [count], ascending but for a leading zero, padded with the last; indices INT64 [n].
    """
    flat = values.double()
    if not bool(flat.isfinite().all()):
        raise InvalidRequest("a weight is not a finite number; nothing can stand for it")
    zeros = flat == 0
    if count > 2 and float(zeros.double().mean()) >= MANY_ZEROS and not bool(zeros.all()):
        centres, index = _lloyd(flat[~zeros], count - 1)
        whole = torch.zeros(flat.numel(), dtype=torch.int64)
        whole[~zeros] = index + 1
        return torch.cat([torch.zeros(1, dtype=torch.float64), centres]), whole
    return _lloyd(flat, count)


def _lloyd(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    ordered = values.sort().values
    distinct = torch.unique(ordered)
    if distinct.numel() <= count:
        last = distinct[-1:].expand(count - distinct.numel())
        return torch.cat([distinct, last]), torch.searchsorted(distinct, values)
    sums = torch.cat([torch.zeros(1, dtype=torch.float64), ordered.cumsum(0)])
    centres = torch.linspace(float(ordered[0]), float(ordered[-1]), count, dtype=torch.float64)
    for _ in range(_ROUNDS):
        borders = torch.searchsorted(ordered, (centres[1:] + centres[:-1]) / 2)
        edges = torch.cat([torch.tensor([0]), borders, torch.tensor([ordered.numel()])])
        sizes = edges.diff()
        means = (sums[edges[1:]] - sums[edges[:-1]]) / sizes.clamp(min=1)
        moved = torch.where(sizes > 0, means, centres).sort().values
        if torch.equal(moved, centres):
            break
        centres = moved
    return centres, torch.searchsorted((centres[1:] + centres[:-1]) / 2, values)


SHARING: Final[tuple[type[Step], ...]] = (ShareWeights,)
