"""Low rank: a layer becomes two thin ones, whose product is the nearest to it that so few weights can say."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from compressor.step import Change, Context, Phase, Replaced, Step, changes_of, none_gains, replace_layer_
from compressor.weights.moments import input_moments
from compressor.weights.stored import Ties, weight_of
from worker.errors import InvalidRequest

_RIDGE: Final = 1e-6
"""Of the mean of the moments' diagonal, added to it: directions that calibration never showed still count a little."""


class LowRank(Step):
    """Singular value decomposition: a linear layer becomes two, in → rank → out; a convolution becomes one with `rank`
    output channels and the same kernel, and one with a kernel of 1.

    With `aware`, the error in the layer's outputs on calibration data is made least instead of the error in its
    weights, by whitening with the Cholesky factor of what the layer takes. The layers are plain linears and
    convolutions: quantize them as any. A layer that would not get smaller is left as it is, and said so.

    Source: Denton et al., 2014 (linear); Zhang et al., "Accelerating Very Deep CNNs", 2015 (output channels of
    convolutions); SVD-LLM (Wang et al., 2024) for `aware`.
    Saves: storage and resident memory, by one factor; time by less, as two small products are less efficient than one.
    Device: any.

    One of these says the ranks:
    energy: the least share of the sum of squared singular values that a layer keeps.
    rank: the rank of every layer.
    budget: the share of the layers' weights that may be left in all of them together. Each singular value goes to
        where it keeps the most of its layer's energy for its weights.

    aware: whitened by calibration data; needs some.
    multiple: ranks are rounded to multiples of this, as far as the layer allows it: up for energy, and else down.
    """

    phase: ClassVar[Phase] = Phase.STRUCTURE
    takes: ClassVar[tuple[type[nn.Module], ...]] = (nn.Linear, nn.Conv2d)
    kind: Literal["low_rank"] = "low_rank"
    energy: float | None = Field(default=None, gt=0, lt=1)
    rank: int | None = Field(default=None, ge=1)
    budget: float | None = Field(default=None, gt=0, lt=1)
    aware: bool = False
    multiple: int = Field(default=8, ge=1)

    @model_validator(mode="after")
    def _one_target(self) -> Self:
        given = [name for name in ("energy", "rank", "budget") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give one of energy, rank and budget, not {' and '.join(given) or 'none'}")
        return self

    def depends_on_values(self) -> bool:
        return self.rank is None

    def needs_calibration(self) -> bool:
        return self.aware

    def problem(self, model: nn.Module, steps: Sequence[Step]) -> str | None:
        return super().problem(model, steps) or self._too_small(model) or self._loses_zeros(model, steps)

    def apply_(self, model: nn.Module, context: Context) -> list[Change]:
        layers = self.targets(model)
        able = {name: layer for name, layer in layers.items() if self._loses(layer) is None}
        moments = input_moments(model, able, context) if self.aware else {}
        found = {}
        for name, layer in able.items():
            context.say(f"decomposing {name}")
            found[name] = decompose(as_matrix(layer), moments.get(name))
        ranks = self._ranks(found)
        if all(rank >= _limit(found[name]) for name, rank in ranks.items()):
            raise InvalidRequest(
                f"no layer gets smaller: {', '.join(f'{name} needs rank {rank}' for name, rank in ranks.items())[:300]}"
                "; ask for less energy, or leave the step out"
            )
        done, ties = [], Ties()
        for name, layer in layers.items():
            if name not in able:
                done.append(Replaced(name, f"kept: {self._loses(layer)}", layer, layer))
            elif ranks[name] >= _limit(found[name]):
                what = f"kept: rank {ranks[name]} would take as many weights, or more"
                done.append(Replaced(name, what, layer, layer))
            else:
                new, twin = factored(layer, *found[name].factors(ranks[name])), ties.twin(layer)
                if twin is not None:
                    _tie_(new, twin)
                replace_layer_(model, layer, new)
                ties.add(layer, new)
                kept = f"rank {ranks[name]} of {found[name].values.numel()}"
                what = f"{kept}, {found[name].kept(ranks[name]):.4f} of the energy"
                done.append(Replaced(name, what, layer, new))
        return changes_of(model, done)

    def _ranks(self, found: Mapping[str, "Decomposition"]) -> dict[str, int]:
        if self.budget is not None:
            return ranks_within(found, self.budget, self.multiple)
        ranks = {}
        for name, one in found.items():
            most = one.values.numel()
            if self.rank is not None:
                ranks[name] = min(self.rank, most)
            else:
                needed = one.rank_for(self.energy or 1.0)
                ranks[name] = min(-(-needed // self.multiple) * self.multiple, most)
        return ranks

    def _too_small(self, model: nn.Module) -> str | None:
        reasons = {name: self._loses(layer) for name, layer in self.targets(model).items()}
        return none_gains(reasons, self.layers, "no layer can get smaller")

    def _loses_zeros(self, model: nn.Module, steps: Sequence[Step]) -> str | None:
        """Which earlier step prunes a layer whose factors would have none of its zeros."""
        targets = self.targets(model)
        for other in steps[: next((place for place, one in enumerate(steps) if one is self), 0)]:
            both = [name for name in targets if name in other.zeroed(model) and self._loses(targets[name]) is None]
            if both:
                return (
                    f'"{other.kind}" sets weights of {both[0]} to zero before, and its two factors would have none of '
                    f'those zeros; prune after it, or leave the layer out: layers: ["*", "!{both[0]}"]'
                )
        return None

    def _loses(self, layer: nn.Module) -> str | None:
        if isinstance(layer, nn.Conv2d) and layer.groups != 1:
            return f"it has {layer.groups} groups, which are small matrices already"
        out, taken = as_matrix(layer).shape
        least = min(self.rank or 1, out, taken)
        if least * (out + taken) >= out * taken:
            return f"a [{out}, {taken}] matrix gets no smaller at rank {least}: it is too small"
        return None


@dataclass(frozen=True, slots=True)
class Decomposition:
    """out [m, k], values [k] descending, back [k, n]: out · diag(values) · back is the matrix [m, n]."""

    out: Tensor
    values: Tensor
    back: Tensor

    def kept(self, rank: int) -> float:
        """The share of the energy that `rank` values keep."""
        squares = self.values.square()
        total = float(squares.sum())
        return float(squares[:rank].sum()) / total if total else 1.0

    def rank_for(self, energy: float) -> int:
        """The least rank that keeps this share of the energy."""
        squares = self.values.square()
        enough = squares.cumsum(0) >= energy * squares.sum()
        return int(enough.int().argmax()) + 1

    def factors(self, rank: int) -> tuple[Tensor, Tensor]:
        """second [m, rank], first [rank, n]; the values are shared out evenly, so that both quantize well."""
        root = self.values[:rank].sqrt()
        return self.out[:, :rank] * root, root[:, None] * self.back[:rank]


def decompose(matrix: Tensor, moments: Tensor | None = None) -> Decomposition:
    """The singular value decomposition of `matrix` [m, n]; float64.

    moments: [n, n], the sum of x xᵀ over what the layer takes. With them, what `rank` values leave out is the squared
        error of the layer's outputs over those x (but for a ridge), not of its weights.
    """
    weight = matrix.double()
    if not bool(weight.isfinite().all()):
        raise InvalidRequest("a weight is not a finite number; there is no decomposition of it")
    if moments is None:
        return Decomposition(*torch.linalg.svd(weight, full_matrices=False))
    ridge = _RIDGE * float(moments.diagonal().mean()) or 1.0
    root = torch.linalg.cholesky(moments.double() + ridge * torch.eye(moments.shape[0], dtype=torch.float64))
    out, values, back = torch.linalg.svd(weight @ root, full_matrices=False)
    return Decomposition(out, values, torch.linalg.solve_triangular(root, back, upper=False, left=False))


def ranks_within(found: Mapping[str, Decomposition], budget: float, multiple: int) -> dict[str, int]:
    """Ranks with which all layers together have at most `budget` of the weights that they have whole.

    A layer whose rank saves nothing stays whole, and costs as much as it does whole.

    Raises:
        InvalidRequest: rank 1 everywhere is more than that.
    """
    whole = sum(_size(one) for one in found.values())
    worth = {
        name: one.values.square() / one.values.square().sum().clamp(min=1e-300) / _cost(one)
        for name, one in found.items()
    }

    def at(least: float) -> dict[str, int]:
        ranks = {}
        for name in found:
            rank = max(1, int((worth[name] >= least).sum()))
            ranks[name] = rank // multiple * multiple or rank
        return ranks

    def cost(ranks: Mapping[str, int]) -> int:
        return sum(min(rank * _cost(found[name]), _size(found[name])) for name, rank in ranks.items())

    levels = torch.unique(torch.cat(list(worth.values()))).tolist()
    low, high = 0, len(levels)  # the cost falls as the level rises
    while low < high:
        middle = (low + high) // 2
        if cost(at(levels[middle])) <= budget * whole:
            high = middle
        else:
            low = middle + 1
    ranks = at(levels[low]) if low < len(levels) else dict.fromkeys(found, 1)
    if cost(ranks) > budget * whole:
        raise InvalidRequest(
            f"budget {budget}: even rank 1 leaves {cost(ranks) / whole:.3f} of the weights; give more, or fewer layers"
        )
    return ranks


def as_matrix(layer: nn.Module) -> Tensor:
    """The layer's weight as [out, in], or [out, in * height * width]."""
    return weight_of(layer).flatten(1)


def factored(layer: nn.Module, second: Tensor, first: Tensor) -> nn.Sequential:
    """Two layers in place of one: `first` [rank, n], then `second` [m, rank] and the layer's bias."""
    rank = first.shape[0]
    one: nn.Module
    two: nn.Module
    match layer:
        case nn.Linear():
            one = nn.Linear(layer.in_features, rank, bias=False)
            two = nn.Linear(rank, layer.out_features, bias=layer.bias is not None)
        case nn.Conv2d():
            one = nn.Conv2d(
                layer.in_channels,
                rank,
                layer.kernel_size,  # type: ignore[arg-type]
                layer.stride,  # type: ignore[arg-type]
                layer.padding,  # type: ignore[arg-type]
                layer.dilation,  # type: ignore[arg-type]
                bias=False,
                padding_mode=layer.padding_mode,
            )
            two = nn.Conv2d(rank, layer.out_channels, 1, bias=layer.bias is not None)
        case _:
            raise InvalidRequest(f"{type(layer).__name__}: expected a Linear or a Conv2d")
    like = weight_of(layer)
    for new, factor in ((one, first), (two, second)):
        new.weight = nn.Parameter(factor.reshape(weight_of(new).shape).to(like).contiguous())
    if layer.bias is not None:
        two.bias = layer.bias
    return nn.Sequential(one, two)


def _tie_(new: nn.Module, twin: nn.Module) -> None:
    """Lets two pairs of factors be one, where they are equal: calibration may have given the layers different ones."""
    pairs = [(mine, theirs) for mine, theirs in zip(new.children(), twin.children(), strict=True)]
    if all(torch.equal(weight_of(mine), weight_of(theirs)) for mine, theirs in pairs):
        for mine, theirs in pairs:
            mine.weight = theirs.weight


def _cost(one: Decomposition) -> int:
    """Weights of a rank."""
    return one.out.shape[0] + one.back.shape[1]


def _size(one: Decomposition) -> int:
    """Weights of the matrix as it is."""
    return one.out.shape[0] * one.back.shape[1]


def _limit(one: Decomposition) -> int:
    """The least rank that saves nothing."""
    return -(-_size(one) // _cost(one))


LOW_RANK: Final[tuple[type[Step], ...]] = (LowRank,)
