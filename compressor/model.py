"""What a source gives: a module, examples of its inputs, and the names of things."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from worker.nouns import Axis


@dataclass(frozen=True, slots=True)
class Input:
    """One input of the module.

    example: a tensor as the module takes it; at least 2 along each named axis.
    axes: for each dimension the name of its dynamic axis, or None where its size is fixed.
    pad: what fills a shorter request up to the longest of its batch; None: it must not be padded.
    """

    name: str
    example: torch.Tensor
    axes: tuple[str | None, ...]
    pad: bool | int | float | None = None


@dataclass(frozen=True, slots=True)
class Model:
    """A module and all that must be known to capture it.

    outputs: names of what it returns, in order; empty: "output", or "output_0", "output_1", ….
    axes: bounds of named axes; an axis that is not listed is at least 1.
    handler: "module:Class" that serves it, and the files of its handler/ folder by name.
    identity: changes whenever the model does; from it `make run` knows that it has packaged this one before.
    """

    module: torch.nn.Module
    inputs: tuple[Input, ...]
    outputs: tuple[str, ...] = ()
    axes: tuple[Axis, ...] = ()
    handler: str | None = None
    assets: Mapping[str, Path | bytes] = field(default_factory=dict)
    identity: str = ""
