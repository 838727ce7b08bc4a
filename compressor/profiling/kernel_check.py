"""Whether a layer's kernel is there on a device and right: tried on a small layer, before any work is done."""

from collections.abc import Callable

import torch
from torch import nn

from compressor.profiling.measure import distance
from worker.errors import first_line


def kernel_problem(make: Callable[[nn.Linear], nn.Module], device: str, *, tolerance: float) -> str | None:
    """Why what `make` gives for a linear layer does not do on `device` what the layer does; None where it does.

    tolerance: how far apart the two may be (see `compressor.profiling.measure.distance`).
    """
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(64, 32)
    for parameter in layer.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    x = torch.randn(3, 64, generator=generator)
    with torch.inference_mode():
        try:
            found = make(layer).to(device)(x.to(device)).cpu()
        except RuntimeError as error:
            return f"{device} does not compute it: {first_line(error)[:300]}"
        apart = distance([found], [layer(x)])
    return None if apart <= tolerance else f"{device} computes something else: it is {apart:.2g} from what is right"
