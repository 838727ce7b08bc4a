"""2 of 4 sparsity on the GPU's own units: half of the weights, and up to twice the speed of the product."""

from collections.abc import Sequence
from typing import ClassVar, Final, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from compressor.profiling.measure import distance
from compressor.pruning.prune_weights import PruneWeights
from compressor.step import Change, Context, Phase, Step, replace_layer_, stored_bytes
from compressor.weights.stored import taken_later, weight_of
from worker.errors import InvalidRequest, Unsupported

_COLUMNS: Final = 16
_ROWS: Final = 8
_TOLERANCE: Final = 0.02
"""Of bfloat16 products that are summed in another order."""


class Sparse24(Step):
    """Linear layers with 2 of every 4 inputs zero, multiplied in bfloat16 by the sparse units of NVIDIA GPUs.

    Source: Mishra et al., "Accelerating Sparse Deep Neural Networks", 2021; the kernel is cuSPARSELt's. CUDA only,
    compute capability 8.0 and later. Saves nearly half of the weight's storage and resident memory, and time where the
    product is large. Other devices have no such unit: there, the step `sparse` with the layout "n_of_m" saves the
    storage. The layer runs in this process and cannot be packaged: program files may not name sparse operators.
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
        coming = any(isinstance(other, PruneWeights) and other.n_of_m == "2:4" for other in earlier)
        reasons = {name: _unfit(layer, pruned=not coming) for name, layer in self.targets(model).items()}
        if all(reasons.values()):
            name, reason = next(iter(reasons.items()))
            return f"no layer can be so; {name}: {reason}"
        return None

    def apply_(self, model: nn.Module, context: Context) -> list[Change]:
        if not torch.cuda.is_available():
            raise Unsupported("2 of 4 sparsity needs a CUDA device, and this machine has none")
        changes = []
        for name, layer in self.targets(model).items():
            if _unfit(layer, pruned=True) is None:
                new = Linear24(layer, context.target)  # type: ignore[arg-type]
                replace_layer_(model, layer, new)
                changes.append(Change(name, "2 of 4, bfloat16", stored_bytes(layer), stored_bytes(new)))
        return changes


class Linear24(nn.Module):
    """x [..., in] → [..., out], of x's own type; packed: values and places as cuSPARSELt has them.

    Raises:
        InvalidRequest: the sparse product is not the dense one, on numbers drawn here.
    """

    def __init__(self, layer: nn.Linear, device: str) -> None:
        super().__init__()
        weight = weight_of(layer).to(device, torch.bfloat16)
        self.packed: Tensor
        self.bias: Tensor | None
        self.register_buffer("packed", torch._cslt_compress(weight))
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach().to(device, torch.bfloat16))
        self._out = weight.shape[0]
        example = torch.randn(24, weight.shape[1], device=device, dtype=torch.bfloat16)
        expected = functional.linear(example, weight, self.bias)
        apart = distance([self(example)], [expected])
        if not apart <= _TOLERANCE:
            raise InvalidRequest(
                f"the sparse product of this GPU is {apart:.2g} from the dense one; leave the step out"
            )

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1]).to(torch.bfloat16)
        padded = functional.pad(rows, (0, 0, 0, -rows.shape[0] % _ROWS))
        y = torch._cslt_sparse_mm(self.packed, padded.t(), bias=self.bias).t()[: rows.shape[0]]
        return y.reshape(*x.shape[:-1], self._out).to(x.dtype)


def _unfit(layer: nn.Module, *, pruned: bool) -> str | None:
    """Why a layer is left as it is. `pruned`: whether it must have its zeros by now."""
    weight = weight_of(layer)
    out, columns = weight.shape
    if out % _COLUMNS or columns % _COLUMNS:
        return f"its sizes {out} and {columns} are no multiples of {_COLUMNS}, as the sparse units need them"
    if pruned and int((weight.reshape(-1, 4) != 0).sum(1).max()) > 2:
        return 'more than 2 of some 4 inputs are not zero; prune with n_of_m: "2:4" first'
    return None


SPARSE_GPU: Final[tuple[type[Step], ...]] = (Sparse24,)
