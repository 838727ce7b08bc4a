"""Structured pruning of attention heads: whole heads go for good, keys and values with the queries that share them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from compressor.pruning.coupling import Place
from compressor.pruning.masks import RANDOM, Score
from compressor.pruning.removal import compare, mask_inputs_, own_bytes, shrink_, told
from compressor.step import Change, Context, Phase, Step, seeded, selected
from compressor.weights.stored import weight_of
from worker.errors import InvalidRequest

_NAMES: Final = (
    ("query", "key", "value"),
    ("q_proj", "k_proj", "v_proj"),
    ("q_lin", "k_lin", "v_lin"),
    ("q", "k", "v"),
)
_OUTPUTS: Final = ("o_proj", "out_proj", "out_lin", "out", "o", "wo", "proj")
_OUTPUTS_BESIDE: Final = ("output.dense", "out_proj", "o_proj", "proj")
"""In the module around the one that holds the queries, as in BERT."""

_HEADS: Final = ("num_attention_heads", "num_heads", "n_heads", "heads", "num_q_heads")
_KEY_HEADS: Final = ("num_key_value_heads", "num_kv_heads", "n_kv_heads", "kv_heads")
_WIDTHS: Final = ("all_head_size", "inner_dim", "embed_dim")


@dataclass(frozen=True, slots=True)
class Attention:
    """An attention layer. Its heads come in `groups`, each of one key head and the query heads that share it.

    path, module: what holds the projections. output: the projection's name after it.
    """

    path: str
    module: nn.Module
    query: str
    key: str
    value: str
    output: str
    groups: int
    queries_a_group: int
    width: int
    value_width: int

    def places(self, group: Tensor) -> dict[Place, Tensor]:
        """Where these groups [n] are in the weights, all of their rows or columns."""
        wide = self.queries_a_group * self.width
        rows = {self.query: wide, self.key: self.width, self.value: self.value_width}
        found: dict[Place, Tensor] = {}
        for name, each in rows.items():
            found[Place(f"{name}.weight", 0)] = _spans(group, each)
            found[Place(f"{name}.bias", 0)] = _spans(group, each)
        found[Place(f"{self.output}.weight", 1)] = _spans(group, self.queries_a_group * self.value_width)
        return found


class PruneHeads(Step):
    """Removes whole attention heads: their rows of queries, keys and values, and their columns of the output.

    With grouped queries, a key head goes with all the query heads that share it. Attention layers are found by their
    names (query, key, value and the like, each a linear layer) and by the number of heads that they hold.

    Source: Michel et al., "Are Sixteen Heads Really Better than One?", 2019.
    Saves: storage, resident memory and time: what is removed is gone.
    Device: any.

    layers: the modules that hold queries, keys and values.
    share: of the heads (groups of heads) that go.
    score: the norm of a head's weights, each matrix as a part of its mean; or at random, by the seed.
    among: in each "layer", or in "all" layers together; at least one stays in each.
    multiple: so many heads, or a multiple of it, stay in each layer.
    """

    phase: ClassVar[Phase] = Phase.STRUCTURE
    kind: Literal["prune_heads"] = "prune_heads"
    share: float = Field(gt=0, lt=1)
    score: Score = "l2"
    among: Literal["layer", "all"] = "layer"
    multiple: int = Field(default=1, ge=1, le=256)

    def problem(self, model: nn.Module, steps: Sequence[Step]) -> str | None:
        problem = super().problem(model, steps)
        if problem is not None:
            return problem
        found = self.attentions(model)
        if not found:
            return self._none_found()
        if all(one.groups <= self.multiple for one in found):
            return f"{found[0].path} has {found[0].groups} heads: too few to take some away"
        return None

    def _none_found(self) -> str:
        return (
            f"{', '.join(self.layers)}: no attention found there; looked for modules with linear layers named "
            f"{', or '.join(' '.join(names) for names in _NAMES)}, an output projection, and a number of heads"
        )

    def depends_on_values(self) -> bool:
        return self.among == "all"

    def attentions(self, model: nn.Module) -> list[Attention]:
        return [one for one in attentions(model) if selected(one.path, self.layers)]

    def apply_(self, model: nn.Module, context: Context) -> list[Change]:
        found = self.attentions(model)
        if not found:
            raise InvalidRequest(self._none_found())
        scores = [self._scores(model, one, context.seed) for one in found]
        limit = torch.cat(scores).sort().values[: max(1, round(self.share * sum(map(len, scores))))][-1]
        gone: dict[Place, Tensor] = {}
        worst: list[Tensor] = []
        before = own_bytes(model)
        known = dict(model.named_parameters(remove_duplicate=False))
        for one, score in zip(found, scores, strict=True):
            wanted = round(self.share * one.groups) if self.among == "layer" else int((score <= limit).sum())
            stay = max(-(-(one.groups - wanted) // self.multiple), 1) * self.multiple
            worst.append(score.argsort(stable=True)[: max(0, one.groups - stay)].sort().values)
            gone |= {place: indices for place, indices in one.places(worst[-1]).items() if place.tensor in known}
        if not any(map(len, worst)):
            there = ", ".join(f"{one.path} has {one.groups}" for one in found)[:300]
            raise InvalidRequest(f"no head goes: {there}, and multiples of {self.multiple} stay; ask for more")
        mask_inputs_(model, gone)

        def change() -> None:
            shrink_(model, gone)
            for one, groups in zip(found, worst, strict=True):
                _tell_heads(one, one.groups - len(groups))

        compare(model, context.examples, change)
        whats = {
            one.path: (
                f"{(one.groups - len(groups)) * one.queries_a_group} of {one.groups * one.queries_a_group} heads stay"
            )
            for one, groups in zip(found, worst, strict=True)
            if len(groups)
        }
        return told(model, before, whats)

    def _scores(self, model: nn.Module, one: Attention, seed: int) -> Tensor:
        """FP64 [groups]."""
        if self.score == RANDOM:
            return torch.rand(one.groups, generator=seeded(seed, one.path), dtype=torch.float64)
        weights = dict(model.named_parameters(remove_duplicate=False))
        norms = []
        for place, indices in one.places(torch.arange(one.groups)).items():
            if place.tensor.endswith("weight"):
                values = weights[place.tensor].detach().double()
                values = values.abs() if self.score == "l1" else values.square()
                sums = values.sum(1 - place.dim)[indices].sum(1)
                norm = sums if self.score == "l1" else sums.sqrt()
                norms.append(norm / norm.mean().clamp(min=1e-300))
        return torch.stack(norms).mean(0)


def attentions(model: nn.Module) -> list[Attention]:
    """The attention layers that can be recognised, in the model's order."""
    modules = dict(model.named_modules())
    return [one for path, module in modules.items() if (one := _attention(path, module, modules)) is not None]


def _attention(path: str, module: nn.Module, modules: dict[str, nn.Module]) -> Attention | None:
    for names in _NAMES:
        layers = [getattr(module, name, None) for name in names]
        if not all(type(layer) is nn.Linear for layer in layers):
            continue
        query, key, value = (weight_of(layer).shape[0] for layer in layers if layer is not None)
        heads = _number(module, _HEADS)
        for output in _outputs(path):
            layer = modules.get(output)
            if heads is None or query % heads or type(layer) is not nn.Linear:
                continue
            width = query // heads
            groups = key // width
            if key % width or not groups or heads % groups or value % groups:
                continue
            if weight_of(layer).shape[1] != heads * (value // groups):
                continue
            prefix = f"{path}." if path else ""
            return Attention(
                path=path,
                module=module,
                query=prefix + names[0],
                key=prefix + names[1],
                value=prefix + names[2],
                output=output,
                groups=groups,
                queries_a_group=heads // groups,
                width=width,
                value_width=value // groups,
            )
    return None


def _outputs(path: str) -> Iterator[str]:
    prefix = f"{path}." if path else ""
    yield from (prefix + name for name in _OUTPUTS)
    if path:
        outer = path.rpartition(".")[0]
        yield from (f"{outer}.{name}" if outer else name for name in _OUTPUTS_BESIDE)


def _number(module: nn.Module, names: Sequence[str]) -> int | None:
    """The first of these attributes that is there, on the module or on its config."""
    for holder in (module, getattr(module, "config", None)):
        for name in names:
            found = getattr(holder, name, None)
            if isinstance(found, int):
                return found
    return None


def _tell_heads(one: Attention, groups: int) -> None:
    """Numbers of heads that the module itself holds; a config is shared by layers that may differ, and stays."""
    for names, number in ((_HEADS, groups * one.queries_a_group), (_KEY_HEADS, groups)):
        for name in names:
            if isinstance(getattr(one.module, name, None), int):
                setattr(one.module, name, number)
    before = one.groups * one.queries_a_group * one.width
    for name in _WIDTHS:
        if getattr(one.module, name, None) == before:
            setattr(one.module, name, groups * one.queries_a_group * one.width)


def _spans(group: Tensor, width: int) -> Tensor:
    """Indices of the rows of each group: [n, width]."""
    return group.unsqueeze(1) * width + torch.arange(width)


HEAD_PRUNING: Final[tuple[type[Step], ...]] = (PruneHeads,)
