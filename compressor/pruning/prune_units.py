"""Structured pruning of channels and neurons: whole units go for good, and the model is physically smaller."""

from collections.abc import Sequence
from typing import ClassVar, Final, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from compressor.pruning.coupling import Coupled, Place, coupled
from compressor.pruning.masks import RANDOM, Score
from compressor.pruning.removal import own_bytes, remove_, told
from compressor.step import Change, Context, Phase, Step, seeded
from worker.errors import InvalidRequest


class PruneUnits(Step):
    """What pruning channels and pruning neurons have in common; recipes name one of those.

    layers: the layers that make the units; units that several layers make together (as the channels of a residual
        stream) go only when all of these are among them.
    share: of each layer's units that go.
    below: instead, units go that score less than this part of their layer's mean: what training with a penalty has
        driven towards zero.
    score: "l1" or "l2": the norm of what makes and what takes a unit, over all weights that it is a part of, each as a
        part of its layer's mean, so that large layers do not outvote small ones. "random": drawn by the seed.
    among: with `share`: in each "layer", or in "all" layers together, so that some lose more than others.
    multiple: so many units, or a multiple of it, stay in every layer: kernels are made for such sizes. Fewer than asked
        for go where it does not fit.
    """

    phase: ClassVar[Phase] = Phase.STRUCTURE
    share: float | None = Field(default=None, gt=0, lt=1)
    below: float | None = Field(default=None, gt=0, lt=1)
    score: Score = "l2"
    among: Literal["layer", "all"] = "layer"
    multiple: int = Field(default=8, ge=1, le=1024)

    @model_validator(mode="after")
    def _one_target(self) -> Self:
        if (self.share is None) == (self.below is None):
            raise ValueError("give either share or below")
        if self.below is not None and self.score == RANDOM:
            raise ValueError("below compares norms; give l1 or l2 as the score")
        return self

    def problem(self, model: nn.Module, steps: Sequence[Step]) -> str | None:
        return super().problem(model, steps) or (
            None
            if any(layer.weight.shape[0] > self.multiple for layer in self.targets(model).values())  # type: ignore[index]
            else f"no layer has more than {self.multiple} units: they are too small; give a smaller multiple"
        )

    def depends_on_values(self) -> bool:
        return self.below is not None or self.among == "all"

    def apply_(self, model: nn.Module, context: Context) -> list[Change]:
        groups = self.groups(model, context)
        worst = self.worst(model, groups, context.seed)
        sizes = own_bytes(model)
        if not any(map(len, worst)):
            there = ", ".join(f"{_layer(group.makers[0])} has {group.units}" for group in groups)[:300]
            raise InvalidRequest(f"nothing goes: {there}, and multiples of {self.multiple} stay; ask for more")
        remove_(model, places(groups, worst), context.examples)
        whats: dict[str, str] = {}
        for group, units in zip(groups, worst, strict=True):
            name = _layer(group.makers[0])
            if len(units):
                what = f"{group.units - len(units)} of {group.units} units stay"
                whats[name] = f"{whats[name]}; {what}" if name in whats else what
        return told(model, sizes, whats)

    def groups(self, model: nn.Module, context: Context) -> list[Coupled]:
        """The groups of units that this step may remove.

        Raises:
            InvalidRequest: there is none.
        """
        targets = self.targets(model)
        found = [
            group
            for group in coupled(model, context.examples)
            if group.makers and group.takers and all(_layer(maker) in targets for maker in group.makers)
        ]
        if not found:
            raise InvalidRequest(
                f"{', '.join(self.layers)}: no layer's units can be removed: they reach an output, or an operator "
                "through which they cannot be followed, or layers that are not among these make them too"
            )
        return found

    def worst(self, model: nn.Module, groups: Sequence[Coupled], seed: int) -> list[Tensor]:
        """For each group the units that go."""
        scores = [unit_scores(model, group, self.score, seed=seed) for group in groups]
        if self.below is not None:
            wanted = [int((score < self.below * score.mean()).sum()) for score in scores]
        elif self.among == "layer":
            wanted = [round((self.share or 0) * group.units) for group in groups]
        else:
            every = torch.cat(scores).sort().values
            limit = every[max(0, round((self.share or 0) * every.numel()) - 1)]
            wanted = [int((score <= limit).sum()) for score in scores]
        return [
            score.argsort(stable=True)[: removable(group.units, count, self.multiple)]
            for group, score, count in zip(groups, scores, wanted, strict=True)
        ]


class PruneChannels(PruneUnits):
    """Removes output channels of convolutions, with their norms' scales and the inputs of whatever takes them.

    It costs accuracy that fine-tuning wins back in part.

    Source: Li et al., "Pruning Filters for Efficient ConvNets", 2017 (norms); Fang et al., "DepGraph", 2023 (coupled
    channels).
    Saves: storage, resident memory and time: what is removed is gone.
    Device: any.
    """

    takes: ClassVar[tuple[type[nn.Module], ...]] = (nn.Conv2d,)
    kind: Literal["prune_channels"] = "prune_channels"


class PruneNeurons(PruneUnits):
    """Removes neurons between linear layers (of feed-forward blocks, gated ones too).

    It costs accuracy that fine-tuning wins back in part.

    Source: as for channels (Li et al., 2017; Fang et al., 2023); for transformers e.g. Kwon et al., 2022.
    Saves: storage, resident memory and time: what is removed is gone.
    Device: any.
    """

    takes: ClassVar[tuple[type[nn.Module], ...]] = (nn.Linear,)
    kind: Literal["prune_neurons"] = "prune_neurons"
    multiple: int = Field(default=16, ge=1, le=1024)


def places(groups: Sequence[Coupled], units: Sequence[Tensor]) -> dict[Place, Tensor]:
    """All places of these units of each group, and at each the indices."""
    found: dict[Place, Tensor] = {}
    for group, some in zip(groups, units, strict=True):
        for place, indices in group.indices.items():
            here = indices[some].reshape(-1)
            found[place] = torch.cat([found[place], here]) if place in found else here
    return found


def removable(units: int, wanted: int, multiple: int) -> int:
    """How many units go when `wanted` are to, and what stays is to be a multiple: at least one multiple stays."""
    stay = max(-(-(units - wanted) // multiple), 1) * multiple
    return max(0, units - stay)


def unit_scores(model: nn.Module, group: Coupled, score: Score, *, seed: int = 0) -> Tensor:
    """FP64 [units]: about 1 for a unit like the mean of its group. See `PruneUnits.score`."""
    if score == RANDOM:
        name = next(iter(group.indices)).tensor
        return torch.rand(group.units, generator=seeded(seed, name), dtype=torch.float64)
    norms = [
        (sums.sqrt() if score == "l2" else sums).detach().cpu()
        for sums in weight_sums(model, group, squares=score == "l2")
    ]
    return torch.stack([norm / norm.mean().clamp(min=1e-300) for norm in norms]).mean(0)


def weight_sums(model: nn.Module, group: Coupled, *, squares: bool) -> list[Tensor]:
    """For each weight that the units are a part of, the sum of its magnitudes or squares for each unit: FP64 [units].

    Biases and running statistics have no say. With gradients, where the weights have.
    """
    weights = dict(model.named_parameters(remove_duplicate=False))
    found = []
    for place, indices in group.indices.items():
        weight = weights.get(place.tensor)
        if weight is not None and (weight.dim() > 1 or place.tensor.endswith("weight")):
            values = weight.double()
            values = values.square() if squares else values.abs()
            rest = [dim for dim in range(values.dim()) if dim != place.dim]
            by_index = values.sum(rest) if rest else values
            found.append(by_index[indices.to(values.device)].sum(1))
    return found


def _layer(weight: str) -> str:
    return weight.rpartition(".")[0]


UNIT_PRUNING: Final[tuple[type[Step], ...]] = (PruneChannels, PruneNeurons)
