"""Steps that give layers another number format, one at a time: integers, short floats, one or two bits."""

from collections.abc import Sequence
from typing import ClassVar, Final, Literal

from torch import nn

from compressor.quantize import Int8Linear
from compressor.step import Change, Context, Phase, Step, replace_layer_, stored_bytes


class Format(Step):
    """A step that replaces each of its layers by one in another format."""

    phase: ClassVar[Phase] = Phase.QUANTIZE

    def problem(self, model: nn.Module, steps: Sequence[Step]) -> str | None:
        return super().problem(model, steps) or self._claimed_twice(model, steps)

    def apply_(self, model: nn.Module, context: Context) -> list[Change]:
        changes = []
        for name, layer in self.targets(model).items():
            new = self.made(layer, context)
            replace_layer_(model, layer, new)
            changes.append(Change(name, self.kind, stored_bytes(layer), stored_bytes(new)))
        return changes

    def made(self, layer: nn.Module, context: Context) -> nn.Module:
        raise NotImplementedError

    def _claimed_twice(self, model: nn.Module, steps: Sequence[Step]) -> str | None:
        mine = self.targets(model)
        for other in steps:
            if other is self:
                return None
            both = [name for name in other.targets(model) if name in mine] if isinstance(other, Format) else []
            if both:
                return (
                    f'"{other.kind}" takes {both[0]} already; leave it out of one of them: layers: ["*", "!{both[0]}"]'
                )
        return None


class Int8Dynamic(Format):
    """Linear layers in int8, with activations scaled per row at each call: a quarter of the storage and memory, and the
    fastest format of matrix products on CPUs with VNNI. See `compressor.quantize`.
    """

    takes: ClassVar[tuple[type[nn.Module], ...]] = (nn.Linear,)
    kind: Literal["int8_dynamic"] = "int8_dynamic"

    def made(self, layer: nn.Module, context: Context) -> nn.Module:
        del context
        return Int8Linear(layer)  # type: ignore[arg-type]


QUANTIZATION: Final[tuple[type[Step], ...]] = (Int8Dynamic,)
