"""Training data in memory: rows of tensors, shuffled and made into batches."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn

from compressor.step import seeded
from worker.errors import InvalidRequest

Augment = Callable[[tuple[Tensor, ...], torch.Generator], tuple[Tensor, ...]]
"""A batch's inputs → the same, changed at random; draws from the generator alone."""


def first(outputs: Any) -> Tensor:
    """What a model returned, or the first of several tensors."""
    found = outputs[0] if isinstance(outputs, (tuple, list)) else outputs
    if isinstance(found, Tensor):
        return found
    raise InvalidRequest(f"a model that is trained returns a tensor, or several in a tuple; not {type(found).__name__}")


def classes(outputs: Any, targets: Tensor) -> Tensor:
    """Cross-entropy of logits [rows, classes] and class numbers int64 [rows]."""
    logits = first(outputs).float()
    try:
        return nn.functional.cross_entropy(logits, targets)
    except IndexError as error:
        raise InvalidRequest(
            f"a label is from {targets.min()} to {targets.max()}; the model gives {logits.shape[-1]} classes, from 0 on"
        ) from error


def values(outputs: Any, targets: Tensor) -> Tensor:
    """The mean square of what is between outputs and targets of the same shape."""
    found = first(outputs).float()
    if found.shape != targets.shape:
        raise InvalidRequest(f"the model returns {tuple(found.shape)} and the targets are {tuple(targets.shape)}")
    return nn.functional.mse_loss(found, targets.float())


LOSSES: Final = {"classes": classes, "values": values}


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows that fit into memory, as `compressor.step.Training` wants them.

    inputs, targets: tensors of as many rows each.
    rows: of a batch; an incomplete last batch is left out, unless it is the only one.
    towards: what the loss is.
    augment: changes a batch's inputs; None: they stay.
    """

    inputs: tuple[Tensor, ...]
    targets: Tensor
    rows: int = 32
    towards: Literal["classes", "values"] = "classes"
    augment: Augment | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        count = len(self.targets)
        if not count:
            raise InvalidRequest("there are no rows to train on")
        if self.rows < 1:
            raise InvalidRequest(f"rows: expected at least 1 row a batch, not {self.rows}")
        if any(len(tensor) != count for tensor in self.inputs):
            told = [len(tensor) for tensor in self.inputs]
            raise InvalidRequest(f"there are {count} targets and inputs of {told} rows; they must be as many")

    def __len__(self) -> int:
        return max(1, len(self.targets) // self.rows)

    def batches(self, epoch: int) -> Iterator[tuple[tuple[Tensor, ...], Tensor]]:
        order = torch.randperm(len(self.targets), generator=seeded(self.seed, f"epoch {epoch}"))
        for place in range(len(self)):
            chosen = order[place * self.rows : (place + 1) * self.rows]
            inputs = tuple(tensor[chosen] for tensor in self.inputs)
            if self.augment is not None:
                inputs = self.augment(inputs, seeded(self.seed, f"epoch {epoch} batch {place}"))
            yield inputs, self.targets[chosen]

    def loss(self, outputs: Any, targets: Tensor) -> Tensor:
        return LOSSES[self.towards](outputs, targets)
