"""Layers whose weight is held in another form, and decoded when the layer is used.

Decoding is plain arithmetic on plain tensors, so such a layer is captured, cut and loaded like any other. Uncompiled,
the dense weight lives only while its layer runs. A stage is compiled with frozen weights, which decodes indices and
codes once, while it is compiled, so that it runs (and takes memory) as the dense layer does, and with others, which are
decoded at each run; the faster one is kept. Of embeddings only the rows that are asked for are decoded, at each run.
Sparse layouts are compiled as they are and decoded (see `compressor.packaging.decoded`).
"""

from collections.abc import Mapping, Sequence
from typing import Final

from torch import Tensor, nn
from torch.nn import functional

from compressor.step import Step
from worker.errors import InvalidRequest

STORABLE: Final[tuple[type[nn.Module], ...]] = (nn.Linear, nn.Conv2d, nn.Embedding)
"""Layers that can hold their weight in another form."""


MANY_ZEROS: Final = 0.01
"""From this share of exact zeros on, a layer is one that was pruned, and stays so."""


class Store(nn.Module):
    """Holds a weight and gives it, dense and of its original shape, when called."""

    def forward(self) -> Tensor:
        raise NotImplementedError

    def rows(self, index: Tensor) -> Tensor:
        """index INT64 [n] → those rows of the weight, [n, columns]."""
        weight: Tensor = self()
        return weight.index_select(0, index)


class Stored(nn.Module):
    """A layer with its weight in a store. weight: for models that use a layer's weight by themselves."""

    def __init__(self, store: Store) -> None:
        super().__init__()
        self.store = store

    @property
    def weight(self) -> Tensor:
        weight: Tensor = self.store()
        return weight


class StoredLinear(Stored):
    """x [..., in] → [..., out]."""

    def __init__(self, layer: nn.Linear, store: Store) -> None:
        super().__init__(store)
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.store(), self.bias)


class StoredConv2d(Stored):
    """x [batch, in, height, width] → [batch, out, height', width']."""

    def __init__(self, layer: nn.Conv2d, store: Store) -> None:
        super().__init__(store)
        self.bias = layer.bias
        self._stride, self._padding = layer.stride, layer.padding
        self._dilation, self._groups = layer.dilation, layer.groups

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(
            x,
            self.store(),
            self.bias,
            self._stride,
            self._padding,
            self._dilation,
            self._groups,
        )


class StoredEmbedding(Stored):
    """ids INT [...] → [..., width]. Only the rows that are asked for are decoded."""

    def __init__(self, layer: nn.Embedding, store: Store) -> None:
        super().__init__(store)
        self._width = layer.embedding_dim

    def forward(self, ids: Tensor) -> Tensor:
        rows: Tensor = self.store.rows(ids.reshape(-1))
        return rows.reshape(*ids.shape, self._width)


def stored(layer: nn.Module, store: Store) -> Stored:
    """The layer with its weight in `store`."""
    match layer:
        case nn.Linear():
            return StoredLinear(layer, store)
        case nn.Conv2d(padding_mode="zeros"):
            return StoredConv2d(layer, store)
        case nn.Embedding():
            return StoredEmbedding(layer, store)
    raise InvalidRequest(f"{type(layer).__name__}: expected a Linear, a Conv2d with zero padding or an Embedding")


def unstorable(layer: nn.Module) -> str | None:
    """Why a layer cannot hold its weight in another form; None where it can."""
    match layer:
        case nn.Conv2d(padding_mode=mode) if mode != "zeros":
            return f"it pads with {mode!r}; only zeros are done"
        case nn.Embedding(max_norm=limit) if limit is not None:
            return "it changes its weight when it is used (max_norm)"
    return None


def taken_later(step: Step, model: nn.Module, steps: Sequence[Step]) -> str | None:
    """The later step that would change a layer whose weight `step` puts into another form; None where there is none."""
    mine = set(step.targets(model))
    place = next((index for index, other in enumerate(steps) if other is step), len(steps))
    for other in steps[place + 1 :]:
        for name, key in other.changes_weights(model).items():
            if name in mine:
                return (
                    f'"{other.kind}" comes later and takes {name} too, whose weight is then in another form; give them '
                    f'different layers: {key}: ["*", "!{name}"]'
                )
    return None


def zeros_problem(
    step: Step,
    steps: Sequence[Step],
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    *,
    instead: str,
    scaled_rows: bool = False,
) -> str | None:
    """Which of the layers has zeros, or gets them by an earlier step, that a form without a zero would bring back.

    instead: what to take that has a zero. scaled_rows: each row has a scale, so that one of zeros alone stays so.
    """
    earlier = steps[: next((place for place, other in enumerate(steps) if other is step), 0)]
    pruning = {name: other.kind for other in earlier for name in other.zeroed(model)}
    for name, layer in layers.items():
        told = f'"{pruning[name]}" sets weights of it to zero' if name in pruning else ""
        weight = weight_of(layer).flatten(1 if scaled_rows else 0)
        used = weight[(weight != 0).any(1)] if scaled_rows else weight
        zeros = float((used == 0).double().mean()) if used.numel() else 0.0
        if MANY_ZEROS <= zeros < 1:
            told = f"{zeros:.0%} of its weights are zero"
        if told:
            return (
                f"{name}: {told}, and one bit has no zero: all of them would come back; take {instead}, or leave the "
                f'layer out: layers: ["*", "!{name}"]'
            )
    return None


class Ties:
    """What took the places of layers, by their weights: layers that share a weight go on sharing what becomes of it."""

    def __init__(self) -> None:
        self._made: dict[tuple[object, ...], tuple[nn.Module, nn.Module]] = {}

    def twin(self, layer: nn.Module) -> nn.Module | None:
        """What took the place of an earlier layer with the same weight; None: there was none."""
        found = self._made.get(_identity(layer))
        return None if found is None else found[1]

    def add(self, layer: nn.Module, new: nn.Module) -> None:
        # The layer is kept: its weight must live as long as its address stands for it.
        self._made.setdefault(_identity(layer), (layer, new))


def _identity(layer: nn.Module) -> tuple[object, ...]:
    weight = weight_of(layer)
    return weight.data_ptr(), weight.shape, weight.stride(), weight.dtype


def weight_of(layer: nn.Module) -> Tensor:
    """The layer's dense weight, without its history."""
    weight = layer.weight
    if not isinstance(weight, Tensor):
        raise InvalidRequest(f"{type(layer).__name__} has no weight")
    return weight.detach()


def dense_bytes(layer: nn.Module) -> int:
    """Bytes of the layer's dense weight."""
    weight = weight_of(layer)
    return weight.numel() * weight.element_size()
