"""Steps that give layers another number format, a module at a time: integers, short floats, one or two bits.

A model with a format per layer is several such steps, each with its own layers.
"""

from collections.abc import Sequence
from typing import ClassVar, Final, Literal

import torch
from pydantic import Field
from torch import nn

from compressor.profiling.kernel_check import kernel_problem
from compressor.quantization.coded import Bits, CodedWeight
from compressor.quantization.quantize import CUDA_ROWS, Int8Linear
from compressor.quantization.short_floats import Fp8Linear, short
from compressor.step import Change, Context, Phase, Replaced, Step, changes_of, replace_layer_
from compressor.weights.stored import STORABLE, Stored, Ties, stored, unstorable, zeros_problem
from worker.errors import InvalidRequest
from worker.gpu import FP8, INT8, INT8_SIDE, lacks

_INT8_TOLERANCE: Final = 0.05
_FP8_TOLERANCE: Final = 0.15
"""How far a small layer in the format may be from the layer itself where a kernel is tried: a wrong one is far off."""


class Format(Step):
    """A step that replaces each of its layers by one in another format."""

    phase: ClassVar[Phase] = Phase.QUANTIZE

    def problem(self, model: nn.Module, steps: Sequence[Step]) -> str | None:
        return super().problem(model, steps) or self._nothing_fits(model) or claimed_twice(self, model, steps)

    def apply_(self, model: nn.Module, context: Context) -> list[Change]:
        done, ties = [], Ties()
        for name, layer in self.targets(model).items():
            if self.unfit(layer):
                continue
            twin = ties.twin(layer)
            try:
                target = context.target
                new = self.made(layer, target) if twin is None else self.made_like(layer, twin, target)
            except InvalidRequest as error:
                raise InvalidRequest(f"{name}: {error}") from error
            replace_layer_(model, layer, new)
            ties.add(layer, new)
            done.append(Replaced(name, self.kind, layer, new))
        return changes_of(model, done)

    def made(self, layer: nn.Module, target: str) -> nn.Module:
        """What takes the layer's place in a model that will run on `target`."""
        raise NotImplementedError

    def made_like(self, layer: nn.Module, twin: nn.Module, target: str) -> nn.Module:
        """What takes the layer's place, holding the weight that `twin` holds, whose layer had the same."""
        new = self.made(layer, target)
        for name in ("weight", "scale"):
            if hasattr(twin, name):
                setattr(new, name, getattr(twin, name))
        return new

    def unfit(self, layer: nn.Module) -> str | None:
        """Why a layer is left as it is."""
        del layer
        return None

    def _nothing_fits(self, model: nn.Module) -> str | None:
        reasons = {name: self.unfit(layer) for name, layer in self.targets(model).items()}
        named = [name for name, reason in reasons.items() if reason and name in self.layers]
        told = named or (list(reasons) if all(reasons.values()) else [])
        return f"{told[0]}: {reasons[told[0]]}" if told else None


def claimed_twice(step: Step, model: nn.Module, steps: Sequence[Step]) -> str | None:
    """Which layer an earlier step gives a format already; None where there is none."""
    mine = step.targets(model)
    for other in steps:
        if other is step:
            return None
        both = [name for name in other.targets(model) if name in mine] if other.phase >= Phase.QUANTIZE else []
        if both:
            return f'"{other.kind}" takes {both[0]} already; leave it out of one: layers: ["*", "!{both[0]}"]'
    return None


class Int8Dynamic(Format):
    """Linear layers in int8, weights scaled per output and activations per row at each call.

    Source: Jacob et al., 2018, with scales per output and per row; see `compressor.quantization.quantize`.
    Saves: three quarters of these layers' storage and resident memory; time, most on processors with VNNI.
    Device: CPU, and CUDA from compute capability 7.5 on, where what is multiplied is filled up to sizes that the kernel
    takes: a model for CUDA runs on CPUs too, one for CPUs is refused on CUDA.
    """

    takes: ClassVar[tuple[type[nn.Module], ...]] = (nn.Linear,)
    kind: Literal["int8_dynamic"] = "int8_dynamic"

    def device_problem(self, target: str) -> str | None:
        if target == "cpu":
            return None
        return lacks(*INT8, target) or kernel_problem(
            lambda layer: self.made(layer, target), target, tolerance=_INT8_TOLERANCE
        )

    def made(self, layer: nn.Module, target: str) -> nn.Module:
        rows, side = (1, 1) if target == "cpu" else (CUDA_ROWS, INT8_SIDE)
        return Int8Linear(layer, rows=rows, side=side)  # type: ignore[arg-type]


class WeightOnly(Format):
    """A step that stores weights as codes and a scale, and computes in the layer's own float format.

    Uncompiled, weights are decoded at each call: that saves resident memory, and costs time. A stage is compiled both
    ways, with weights that are decoded once, while it is compiled (the time and the memory of the dense layer), and at
    each run; packaging keeps what it measured to be faster. Of an embedding only the rows that are asked for are
    decoded, at each run, in any case. `program.pt2` holds codes and scales.
    """

    takes: ClassVar[tuple[type[nn.Module], ...]] = STORABLE
    bits: ClassVar[Bits]
    group: int | None = Field(default=None, ge=8)
    """Columns that share a scale; None: a whole row."""

    def made(self, layer: nn.Module, target: str) -> nn.Module:
        del target
        return stored(layer, CodedWeight(_weight(layer), self.bits, self.group))

    def made_like(self, layer: nn.Module, twin: nn.Module, target: str) -> nn.Module:
        return stored(layer, twin.store) if isinstance(twin, Stored) else self.made(layer, target)

    def unfit(self, layer: nn.Module) -> str | None:
        weight = _weight(layer)
        rows, columns = weight.shape[0], weight[0].numel()
        groups = -(-columns // min(self.group or columns, columns))
        before = weight.numel() * weight.element_size()
        after = rows * (-(-columns * self.bits // 8) + 4 * groups)
        if after >= before:
            return f"too small: its {rows} rows of {columns} would take {after} bytes instead of {before}"
        return unstorable(layer)


class Int8WeightOnly(WeightOnly):
    """Weights rounded to 8 bits, symmetric; accuracy is as good as unchanged.

    Source: Jacob et al., 2018, the weights' half of it: symmetric, a scale for each row or group of columns.
    Saves: three quarters of the storage; resident memory of embeddings, and of all uncompiled; no time, and compiled
    code that decodes at each run costs some.
    Device: any.
    """

    bits: ClassVar[Bits] = 8
    kind: Literal["int8_weight_only"] = "int8_weight_only"


class Int4WeightOnly(WeightOnly):
    """Weights rounded to 4 bits, symmetric, each group's range chosen for the least squared error.

    Source: Dettmers and Zettlemoyer, "The case for 4-bit precision", 2023 (small groups); each range is found by
    search.
    Saves: six sevenths of the storage; resident memory of embeddings, and of all uncompiled; no time, and compiled code
    that decodes at each run costs some.
    Device: any.
    """

    bits: ClassVar[Bits] = 4
    kind: Literal["int4_weight_only"] = "int4_weight_only"
    group: int | None = Field(default=64, ge=8)


class Ternary(WeightOnly):
    """Weights that are -scale, 0 or scale: 2 bits each. Without training most models lose much by it.

    Source: Li et al., "Ternary weight networks", 2016.
    Saves: fifteen sixteenths of the storage; resident memory of embeddings, and of all uncompiled; no time, as no
    kernel computes with two bits here.
    Device: any.
    """

    bits: ClassVar[Bits] = 2
    kind: Literal["ternary"] = "ternary"


class Binary(WeightOnly):
    """Weights that are -scale or scale: 1 bit each. Without training most models lose nearly all by it. Pruned layers
    are refused: it has no zero.

    Source: Rastegari et al., "XNOR-Net", 2016, the weights' half of it.
    Saves: nearly all of the storage (1 bit of 32 stays); resident memory of embeddings, and of all uncompiled; no time,
    as no kernel computes with one bit here.
    Device: any.
    """

    bits: ClassVar[Bits] = 1
    kind: Literal["binary"] = "binary"

    def problem(self, model: nn.Module, steps: Sequence[Step]) -> str | None:
        able = {name: layer for name, layer in self.targets(model).items() if self.unfit(layer) is None}
        return super().problem(model, steps) or zeros_problem(
            self, steps, model, able, instead='"ternary"', scaled_rows=True
        )


class ShortFloat(Format):
    """A step that makes layers compute in a 16-bit float format; what stands between them stays as it is."""

    takes: ClassVar[tuple[type[nn.Module], ...]] = STORABLE
    dtype: ClassVar[torch.dtype]

    def made(self, layer: nn.Module, target: str) -> nn.Module:
        del target
        return short(layer, self.dtype)

    def unfit(self, layer: nn.Module) -> str | None:
        dtype = _weight(layer).dtype
        if dtype.itemsize <= self.dtype.itemsize:
            return f"it is {dtype} already"
        return unstorable(layer)


class Bf16(ShortFloat):
    """Layers that compute in bfloat16: fp32's range, and 8 bits of precision.

    Source: Kalamkar et al., "A Study of BFLOAT16 for Deep Learning Training", 2019.
    Saves: half of the storage and resident memory; time where the processor computes in it (GPUs, CPUs with AMX or
    AVX512-BF16), and on others it costs time.
    Device: any.
    """

    dtype: ClassVar[torch.dtype] = torch.bfloat16
    kind: Literal["bf16"] = "bf16"


class Fp16(ShortFloat):
    """Layers that compute in IEEE half precision: 11 bits of precision, and numbers up to 65504.

    Source: IEEE 754-2008, binary16.
    Saves: half of the storage and resident memory; time where the processor computes in it (GPUs, CPUs with
    AVX512-FP16), and on others it costs time.
    Device: any.
    """

    dtype: ClassVar[torch.dtype] = torch.float16
    kind: Literal["fp16"] = "fp16"


class Fp8(Format):
    """Linear layers with e4m3 weights scaled per output and e4m3 activations scaled per row, at each call: `Fp8Linear`.

    Source: Micikevicius et al., "FP8 formats for deep learning", 2022.
    Saves: three quarters of fp32's storage and resident memory; time from some hundred rows on, up to half of bf16's.
    Device: CUDA from compute capability 8.9 on; refused elsewhere.
    """

    takes: ClassVar[tuple[type[nn.Module], ...]] = (nn.Linear,)
    devices: ClassVar[frozenset[str]] = frozenset({"cuda"})
    kind: Literal["fp8"] = "fp8"

    def problem(self, model: nn.Module, steps: Sequence[Step]) -> str | None:
        return super().problem(model, steps) or lacks(*FP8, "cuda")

    def device_problem(self, target: str) -> str | None:
        return kernel_problem(lambda layer: self.made(layer, target), target, tolerance=_FP8_TOLERANCE)

    def made(self, layer: nn.Module, target: str) -> nn.Module:
        del target
        return Fp8Linear(layer)  # type: ignore[arg-type]

    def unfit(self, layer: nn.Module) -> str | None:
        sizes = _weight(layer).shape
        return f"its sizes {list(sizes)} are not multiples of 16" if any(size % 16 for size in sizes) else None


def _weight(layer: nn.Module) -> torch.Tensor:
    if not isinstance(layer.weight, torch.Tensor):
        raise InvalidRequest(f"{type(layer).__name__} has no weight")
    return layer.weight


FORMATS: Final[tuple[type[Step], ...]] = (
    Int8Dynamic,
    Int8WeightOnly,
    Int4WeightOnly,
    Bf16,
    Fp16,
    Fp8,
    Ternary,
    Binary,
)
