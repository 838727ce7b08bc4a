"""What layers take on calibration data: the sum of x xᵀ over every x that comes, a token or a patch at a time."""

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn

from compressor.capture import without_fast_path
from compressor.step import Context
from worker.errors import InvalidRequest


def input_moments(model: nn.Module, layers: Mapping[str, nn.Module], context: Context) -> dict[str, Tensor]:
    """For each linear layer [in, in], and for each convolution [in * height * width, ...] of its patches; float64.

    Padding counts as data: leave it out of the calibration batches where it should not.

    Raises:
        InvalidRequest: a layer was not run, or took something that is not a finite number.
    """
    sums: dict[str, Tensor] = {}

    def add(name: str, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        rows = _rows(layer, inputs[0].detach()).double()
        found = (rows.T @ rows).cpu()
        sums[name] = found if name not in sums else sums[name] + found

    handles = [layer.register_forward_pre_hook(partial(add, name)) for name, layer in layers.items()]
    training = model.training
    try:
        model.eval().to(context.device)
        with torch.no_grad(), without_fast_path():
            for batch in context.calibration:
                model(*(tensor.to(context.device) for tensor in batch))
    finally:
        for handle in handles:
            handle.remove()
        model.to("cpu").train(training)
    for name in layers:
        if name not in sums:
            raise InvalidRequest(f'{name} was not used on the calibration data; leave it out: layers: ["*", "!{name}"]')
        if not bool(sums[name].isfinite().all()):
            raise InvalidRequest(f"{name} took something that is not a finite number on the calibration data")
    return sums


def _rows(layer: nn.Module, x: Tensor) -> Tensor:
    """What the layer's matrix is multiplied with, as rows."""
    if isinstance(layer, nn.Conv2d):
        padded = x
        if isinstance(layer.padding, str) or layer.padding_mode != "zeros":
            padded = nn.functional.pad(
                x,
                layer._reversed_padding_repeated_twice,
                mode="constant" if layer.padding_mode == "zeros" else layer.padding_mode,
            )
            padding: tuple[int, ...] = (0, 0)
        else:
            padding = layer.padding
        patches = nn.functional.unfold(padded, layer.kernel_size, layer.dilation, padding, layer.stride)
        return patches.transpose(1, 2).reshape(-1, patches.shape[1])  # [batch * places, in * height * width]
    return x.reshape(-1, x.shape[-1])
