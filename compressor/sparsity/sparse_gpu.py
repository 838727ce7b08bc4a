"""2 of 4 sparsity for the GPU's own units: half of the weights, and up to twice the speed of the product."""

from collections.abc import Sequence
from typing import ClassVar, Final, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from compressor.sparsity.sparse_weight import NofMWeight
from compressor.step import Change, Context, Phase, Step, replace_layer_, stored_bytes
from compressor.weights.stored import taken_later, weight_of
from worker.gpu import lacks

SIDE: Final = 16
"""The sparse units multiply 16-bit weights whose sides are multiples of it."""

SHORT: Final = frozenset({torch.bfloat16, torch.float16})


class Sparse24(Step):
    """Linear layers with 2 of every 4 inputs zero, in 16 bits (fp32 becomes bfloat16), for the sparse units of GPUs.

    The artifact holds what is not zero and its places, as `sparse` with the layout "n_of_m" does, so it is the same on
    every device. Where a stage is compiled for CUDA, its weights are packed for cuSPARSELt's product
    (`compressor.packaging.sparse_units`); it is measured with that and without, and the faster one is kept. Uncompiled,
    and on CPUs, the layer is dense.

    Source: Mishra et al., "Accelerating Sparse Deep Neural Networks", 2021.
    Saves: nearly half of the 16-bit weights' storage; in compiled stages also resident memory and time, where packaging
    measures it to be so.
    Device: CUDA from compute capability 8.0 on; refused elsewhere.
    """

    phase: ClassVar[Phase] = Phase.WEIGHTS
    takes: ClassVar[tuple[type[nn.Module], ...]] = (nn.Linear,)
    devices: ClassVar[frozenset[str]] = frozenset({"cuda"})
    kind: Literal["sparse_2_4"] = "sparse_2_4"

    def problem(self, model: nn.Module, steps: Sequence[Step]) -> str | None:
        told = super().problem(model, steps) or taken_later(self, model, steps)
        if told is not None:
            return told
        earlier = steps[: next((place for place, other in enumerate(steps) if other is self), 0)]
        coming = {name for other in earlier for name in other.zeroed(model)}
        reasons = {name: _unfit(layer, pruned=name not in coming) for name, layer in self.targets(model).items()}
        if all(reasons.values()):
            name, reason = next(iter(reasons.items()))
            return f"no layer can be so; {name}: {reason}"
        return None

    def device_problem(self, target: str) -> str | None:
        missing = lacks("2 of 4 sparsity", (8, 0), target)
        if missing is None and not torch.backends.cusparselt.is_available():
            return f"this PyTorch {torch.__version__} has no cuSPARSELt, whose product it needs"
        return missing

    def apply_(self, model: nn.Module, context: Context) -> list[Change]:
        del context
        changes = []
        for name, layer in self.targets(model).items():
            if _unfit(layer, pruned=True) is None:
                new = Linear24(layer)  # type: ignore[arg-type]
                replace_layer_(model, layer, new)
                changes.append(Change(name, f"2 of 4, {new.dtype}", stored_bytes(layer), stored_bytes(new)))
        return changes


class Linear24(nn.Module):
    """x [..., in] → [..., out], of x's own type; multiplied in 16 bits."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        weight = weight_of(layer)
        self.dtype = weight.dtype if weight.dtype in SHORT else torch.bfloat16
        self.store = NofMWeight(weight.to(self.dtype), 2, 4)
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().to(self.dtype))

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x.to(self.dtype), self.store(), self.bias).to(x.dtype)


def _unfit(layer: nn.Module, *, pruned: bool) -> str | None:
    """Why a layer is left as it is. `pruned`: whether it must have its zeros by now."""
    weight = weight_of(layer)
    out, columns = weight.shape
    if out % SIDE or columns % SIDE:
        return f"its sizes {out} and {columns} are no multiples of {SIDE}, as the sparse units need them"
    if pruned and int((weight.reshape(-1, 4) != 0).sum(1).max()) > 2:
        return 'more than 2 of some 4 inputs are not zero; prune with n_of_m: "2:4" first'
    return None


SPARSE_GPU: Final[tuple[type[Step], ...]] = (Sparse24,)
