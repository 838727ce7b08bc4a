"""What takes part in a training that prunes: zeros that stay zero, masks that grow by a schedule, and penalties."""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from compressor.pruning.coupling import Coupled
from compressor.pruning.prune_units import weight_sums
from compressor.pruning.prune_weights import PruneWeights, mask_
from compressor.training.train import Hook
from compressor.weights.share import SharedWeight

_TINY = 1e-12
"""Keeps the root's gradient finite at zero."""


class KeepZeros(Hook):
    """Weights of linears and convolutions that are zero before the training are zero after it.

    So a pruned model is fine-tuned, and stays pruned. A weight that is wholly zero is taken for one that has still to
    learn, not for a pruned one.
    """

    def __init__(self, model: nn.Module) -> None:
        self._zeros: list[tuple[nn.Parameter, Tensor]] = []
        for module in model.modules():
            pruned = type(module) in {nn.Linear, nn.Conv2d}
            weight = module.codebook if isinstance(module, SharedWeight) else module.weight if pruned else None
            if isinstance(weight, nn.Parameter):
                zero = weight.detach() == 0
                if 0 < int(zero.sum()) < zero.numel():
                    self._zeros.append((weight, zero))

    def after(self, step: int) -> None:
        del step
        with torch.no_grad():
            for weight, zero in self._zeros:
                weight.masked_fill_(zero.to(weight.device), 0)


def cubic(progress: float, final: float, initial: float = 0.0) -> float:
    """The sparsity at a part of the schedule, 0 to 1: fast first, while much is redundant (Zhu and Gupta, 2017)."""
    left = 1 - min(max(progress, 0.0), 1.0)
    return final + (initial - final) * left**3


class GradualMasks(Hook):
    """Prunes `layers` by `step`, a little more every so many steps of the training.

    begin, end: the parts of the training at which pruning begins and is done. every: steps between two masks.
    """

    def __init__(
        self, step: PruneWeights, layers: Mapping[str, nn.Module], *, begin: float, end: float, every: int, seed: int
    ) -> None:
        self._step, self._layers, self._seed = step, dict(layers), seed
        self._begin, self._end, self._every = begin, end, every
        self._first = self._last = 0
        self._masks: dict[str, Tensor] = {}

    def begin(self, steps: int) -> None:
        self._first = round(self._begin * steps)
        self._last = max(self._first + 1, round(self._end * steps))

    def after(self, step: int) -> None:
        due = self._first < step <= self._last and (step - self._first) % self._every == 0
        if due or step == self._last:
            progress = (step - self._first) / (self._last - self._first)
            sparsity = cubic(progress, self._step.sparsity or 0.0)
            self._masks = self._step.masks(self._layers, self._seed, sparsity)
        for name, mask in self._masks.items():
            mask_(self._layers[name], mask)

    def state(self) -> dict[str, Tensor]:
        return self._masks

    def restore(self, state: dict[str, Tensor]) -> None:
        self._masks = dict(state)


class WeightPenalty(Hook):
    """strength times the sum of magnitudes ("l1") or of squares ("l2") of the layers' weights."""

    def __init__(self, layers: Sequence[nn.Module], kind: Literal["l1", "l2"], strength: float) -> None:
        self._weights = [layer.weight for layer in layers]
        self._kind, self._strength = kind, strength

    def penalty(self) -> Tensor:
        sums = [
            weight.abs().sum() if self._kind == "l1" else weight.square().sum()
            for weight in self._weights
            if isinstance(weight, Tensor)
        ]
        return self._strength * torch.stack(sums).sum()


class UnitPenalty(Hook):
    """strength times the sum of the units' norms over all weights that they are a part of, each by the root of the
    number of those (group lasso, Yuan and Lin, 2006; on coupled channels, Fang et al., 2023): whole units go to zero.
    """

    def __init__(self, model: nn.Module, groups: Sequence[Coupled], strength: float) -> None:
        self._model, self._groups, self._strength = model, tuple(groups), strength

    def penalty(self) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for group in self._groups:
            squares = torch.stack(weight_sums(self._model, group, squares=True)).sum(0)
            count = self._numbers(group) / group.units
            total = total.to(squares.device) + count**0.5 * (squares + _TINY).sqrt().sum()
        return (self._strength * total).float()

    def _numbers(self, group: Coupled) -> int:
        """Weights that the group's units have in all."""
        weights = dict(self._model.named_parameters(remove_duplicate=False))
        return sum(
            weights[place.tensor].numel() // weights[place.tensor].shape[place.dim] * indices.numel()
            for place, indices in group.indices.items()
            if place.tensor in weights
        )
