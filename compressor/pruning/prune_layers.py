"""Structured pruning of whole layers: blocks of a stack go for good, and their inputs go to what came after them."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from compressor.capture import Flat, without_fast_path
from compressor.pruning.removal import compare
from compressor.step import Change, Context, Phase, Step, seeded, selected, stored_bytes
from worker.errors import InvalidRequest


class PruneLayers(Step):
    """Removes whole blocks from stacks of blocks (an nn.ModuleList or nn.Sequential of layers of one class).

    It costs accuracy that distillation wins back in part.

    Source: Sajjad et al., "On the Effect of Dropping Layers", 2023; "influence" is that of ShortGPT (Men et al., 2024).
    Saves: storage, resident memory and time in proportion, and more surely than any other pruning.
    Device: any.

    Names move: the blocks that stay are numbered anew, without gaps, and later steps must name them so.

    layers: the blocks that may go. Only blocks whose result is of the shape of what they take do.
    count: how many go.
    score: which: "last"; "spread": evenly over the stack, the first and the last stay; "l1", "l2": those with the least
        norm of weights, by the mean of a block's; "random", by the seed; "influence": those that turn their input the
        least, one minus the cosine, on calibration data.
    """

    phase: ClassVar[Phase] = Phase.STRUCTURE
    kind: Literal["prune_layers"] = "prune_layers"
    count: int = Field(ge=1, le=10_000)
    score: Literal["last", "spread", "l1", "l2", "random", "influence"] = "spread"

    def needs_calibration(self) -> bool:
        return self.score == "influence"

    def problem(self, model: nn.Module, steps: Sequence[Step]) -> str | None:
        told = super().problem(model, steps)
        if told is not None:
            return told
        found = self.blocks(model)
        if len(found) < self.count or len(self.model_copy(update={"layers": ("*",)}).blocks(model)) == self.count:
            return (
                f"{', '.join(self.layers)}: {len(found)} blocks in stacks of layers of one class are there, of which "
                f"{self.count} cannot go"
            )
        return None

    def blocks(self, model: nn.Module) -> dict[str, nn.Module]:
        """The blocks among which it chooses, in the model's order."""
        found: dict[str, nn.Module] = {}
        for path, stack in model.named_modules():
            if not isinstance(stack, (nn.ModuleList, nn.Sequential)) or len(stack) < 2:
                continue
            items = {f"{path}.{name}" if path else name: block for name, block in stack.named_children()}
            kinds = {type(block) for block in items.values()}
            composite = all(any(True for _ in block.children()) for block in items.values())
            if len(kinds) == 1 and composite and not any(path.startswith(f"{name}.") for name in found):
                found |= {name: block for name, block in items.items() if selected(name, self.layers)}
        return found

    def apply_(self, model: nn.Module, context: Context) -> list[Change]:
        blocks = self.blocks(model)
        batches = context.calibration if self.needs_calibration() else [context.examples]
        turns = _watch(model, blocks, batches)
        able = [name for name in blocks if turns.get(name) is not None]
        if len(able) < self.count:
            raise InvalidRequest(
                f"only {', '.join(able) or 'no block'} can go (its result is of the shape of what it takes, and it is "
                f"used once); asked for {self.count}"
            )
        gone = self._worst(able, blocks, turns, context.seed)
        sizes = {name: stored_bytes(blocks[name]) for name in gone}
        with ExitStack() as passing:
            for name in gone:
                passing.callback(blocks[name].register_forward_hook(_pass_on, with_kwargs=True).remove)
            compare(model, context.examples, lambda: _remove_(model, gone))
        return [Change(name, "removed", sizes[name], 0) for name in gone]

    def _worst(
        self, able: Sequence[str], blocks: Mapping[str, nn.Module], turns: Mapping[str, float | None], seed: int
    ) -> list[str]:
        if len(able) == self.count:
            return list(able)
        if self.score == "last":
            return list(able[-self.count :])
        if self.score == "spread":
            step = len(able) / (self.count + 1)
            return [able[min(len(able) - 1, int((place + 1) * step))] for place in range(self.count)]
        score: Callable[[str], float] = {
            "influence": lambda name: turns[name] or 0.0,
            "random": lambda name: float(torch.rand(1, generator=seeded(seed, name))),
            "l1": lambda name: _norm(blocks[name], 1),
            "l2": lambda name: _norm(blocks[name], 2),
        }[self.score]
        least = set(sorted(able, key=score)[: self.count])
        return [name for name in able if name in least]


@dataclass(slots=True)
class _Seen:
    calls: int = 0
    turned: float = 0.0
    alike: bool = True


def _watch(
    model: nn.Module, blocks: Mapping[str, nn.Module], batches: Sequence[tuple[Tensor, ...]]
) -> dict[str, float | None]:
    """For each block the mean of one minus the cosine between what it takes and gives; None where it cannot go."""
    seen = {name: _Seen() for name in blocks}

    def watcher(one: _Seen) -> Callable[..., None]:
        def watch(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
            taken, given = _first((*args, *kwargs.values())), _first(result)
            one.calls += 1
            if taken is None or given is None or taken.shape != given.shape or taken.dtype != given.dtype:
                one.alike = False
                return
            a, b = (tensor.detach().double().flatten(0, -2) for tensor in (taken, given))
            one.turned += 1 - float(nn.functional.cosine_similarity(a, b).mean())

        return watch

    with ExitStack() as hooks, torch.no_grad(), without_fast_path():
        for name, block in blocks.items():
            hooks.callback(block.register_forward_hook(watcher(seen[name]), with_kwargs=True).remove)
        run = Flat(model.eval())
        for batch in batches:
            run(*batch)
    return {
        name: one.turned / one.calls if one.alike and one.calls == len(batches) else None for name, one in seen.items()
    }


def _pass_on(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> Any:
    taken = _first((*args, *kwargs.values()))
    return (taken, *result[1:]) if isinstance(result, tuple) else taken


def _first(values: Any) -> Tensor | None:
    listed = values if isinstance(values, (tuple, list)) else (values,)
    return next((value for value in listed if isinstance(value, Tensor)), None)


def _remove_(model: nn.Module, gone: Sequence[str]) -> None:
    for path in dict.fromkeys(name.rpartition(".")[0] for name in gone):
        stack = model.get_submodule(path)
        left = [block for name, block in stack.named_children() if (f"{path}.{name}" if path else name) not in gone]
        stack._modules.clear()
        for place, block in enumerate(left):
            stack._modules[str(place)] = block
            for part in block.modules():  # a decoder's layers look up their cache by their place
                if isinstance(getattr(part, "layer_idx", None), int):
                    part.layer_idx = place  # type: ignore[assignment]


def _norm(block: nn.Module, power: int) -> float:
    weights = torch.cat([parameter.detach().double().reshape(-1) for parameter in block.parameters()])
    return float(weights.abs().pow(power).mean())


LAYER_PRUNING: Final[tuple[type[Step], ...]] = (PruneLayers,)
