"""The layers of a model as small programs of their own, so that each distinct one is compiled and timed once."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from compressor.model import Input, Model


@dataclass(frozen=True, slots=True)
class LayerCall:
    """One call of a layer: its input's shape at the sizes that are timed, and with examples of two other sizes."""

    shape: tuple[int, ...]
    small: torch.Tensor
    axes: tuple[str | None, ...]


def layer_calls(
    module: nn.Module,
    names: Sequence[str],
    small: Sequence[torch.Tensor],
    other: Sequence[torch.Tensor],
    timed: Sequence[torch.Tensor],
) -> dict[str, list[LayerCall]]:
    """How often each of the layers is called, and with what, when the model runs on the three sets of inputs.

    A layer that takes other than one tensor is left out: it cannot be a program of its own here.
    """
    first, second, third = (_calls(module, names, inputs) for inputs in (small, other, timed))
    found: dict[str, list[LayerCall]] = {}
    for name in names:
        parts = list(zip(first.get(name, []), second.get(name, []), third.get(name, []), strict=False))
        found[name] = [
            LayerCall(tuple(c.shape), a, _axes(a.shape, b.shape))
            for a, b, c in parts
            if a.dim() == b.dim() == c.dim() and a.dim() > 0
        ]
    return found


def _axes(one: Sequence[int], other: Sequence[int]) -> tuple[str | None, ...]:
    return tuple(
        None if a == b or a < 2 else "batch" if axis == 0 else f"axis_{axis}"
        for axis, (a, b) in enumerate(zip(one, other, strict=True))
    )


def _calls(module: nn.Module, names: Sequence[str], inputs: Sequence[torch.Tensor]) -> dict[str, list[torch.Tensor]]:
    seen: dict[str, list[torch.Tensor]] = {}
    hooks = []

    def watch(name: str, layer: nn.Module) -> None:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            if len(args) == 1 and not kwargs and isinstance(args[0], torch.Tensor):
                seen.setdefault(name, []).append(args[0].detach().clone())

        hooks.append(layer.register_forward_pre_hook(hook, with_kwargs=True))

    for name in names:
        watch(name, module.get_submodule(name))
    try:
        with torch.no_grad():
            module(*inputs)
    finally:
        for handle in hooks:
            handle.remove()
    return seen


def layer_model(layer: nn.Module, call: LayerCall) -> Model:
    """The layer as a model with the axes that vary."""
    return Model(layer, (Input("x", call.small, call.axes),))


def layer_digest(layer: nn.Module, call: LayerCall) -> str:
    """The same for layers that take the same time: of one structure, with weights of the same types and shapes."""
    digest = hashlib.sha256(repr(layer).encode())
    for name, tensor in sorted(layer.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
    digest.update(f"{call.shape} {call.small.dtype} {call.axes}".encode())
    return digest.hexdigest()[:32]
