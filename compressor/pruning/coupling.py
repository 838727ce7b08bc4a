"""Which channels of which weights belong together: found by following every channel through the captured graph.

A channel of one layer's result is an input of the next, may be added to a channel of a third, and has a mean and a
scale in the norms between: whoever removes one must remove all of them. What cannot be followed (a channel that reaches
an output, a softmax, a reshape into heads, an operator not known here) stays. The idea is that of DepGraph (Fang et
al., 2023); here it is read from operators instead of modules.
"""

import operator
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind

from compressor.capture import Flat, explained, quietly
from worker.errors import InvalidRequest
from worker.operators import is_pointwise

_MOVES: Final = frozenset(
    {"view", "_unsafe_view", "reshape", "flatten", "unflatten", "permute", "transpose", "t", "expand", "repeat"}
    | {"unsqueeze", "squeeze", "slice", "select", "split", "split_with_sizes", "chunk", "unbind", "cat"}
    | {"constant_pad_nd", "pad", "clone", "alias", "contiguous", "_to_copy", "detach", "lift_fresh_copy"}
)
"""Operators that only move elements: what they do to channels is seen by letting them move the channels' labels."""

_REDUCTIONS: Final = frozenset({"mean", "sum", "amax", "amin"})
_POOLS: Final = frozenset(
    {"max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "_adaptive_avg_pool2d", "max_pool2d_with_indices"}
)
_NORMS: Final = frozenset({"batch_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm"})
_POINTWISE: Final = frozenset({"dropout", "relu", "gelu", "silu", "hardtanh", "leaky_relu", "native_dropout"})

_FIXED: Final = -1


@dataclass(frozen=True, slots=True)
class Place:
    """One dimension of one weight: `tensor` is the parameter's or buffer's name."""

    tensor: str
    dim: int


@dataclass(frozen=True, slots=True)
class Coupled:
    """Units that can be removed, each at several places.

    indices: by place [units, at that place].
    makers, takers: names of the weights of the layers whose outputs the units are, and of those that take them.
    """

    indices: dict[Place, Tensor]
    makers: tuple[str, ...]
    takers: tuple[str, ...]

    @property
    def units(self) -> int:
        return next(iter(self.indices.values())).shape[0]


def coupled(module: nn.Module, examples: Sequence[Tensor]) -> list[Coupled]:
    """All groups of coupled units of `module`, in the order in which they are made.

    Raises:
        InvalidRequest: the module cannot be traced.
    """
    return _Follower(module, examples).groups()


@dataclass(frozen=True, slots=True)
class _Channels:
    """A value's channels: for each index along `dim` a label, or _FIXED."""

    dim: int
    labels: Tensor


@dataclass(frozen=True, slots=True)
class _Weight:
    """A value that is a parameter or buffer itself."""

    name: str


class _Follower:
    def __init__(self, module: nn.Module, examples: Sequence[Tensor]) -> None:
        self._places: dict[Place, Tensor] = {}
        self._parents: list[int] = []
        self._fixed: set[int] = set()
        self._made: set[Place] = set()
        self._taken: set[Place] = set()
        self._values: dict[fx.Node, Any] = {}
        try:
            with quietly():
                exported = torch.export.export(Flat(module.eval()), tuple(examples), strict=False)
                exported = exported.run_decompositions({})
        except Exception as error:  # torch.export raises errors of many unrelated types
            raise InvalidRequest(explained(module, error)) from error
        self._shapes = {
            name.removeprefix("module."): tensor.shape
            for name, tensor in (*exported.state_dict.items(), *exported.constants.items())
            if isinstance(tensor, Tensor)
        }
        weights = {
            spec.arg.name: str(spec.target).removeprefix("module.")
            for spec in exported.graph_signature.input_specs
            if spec.kind in {InputKind.PARAMETER, InputKind.BUFFER}
        }
        for node in exported.graph.nodes:
            if node.op == "placeholder":
                name = weights.get(node.name)
                self._values[node] = _Weight(name) if name is not None and name in self._shapes else None
            elif node.op == "call_function":
                self._values[node] = self._call(node)
            elif node.op == "output":
                self._fix(node.args)

    def groups(self) -> list[Coupled]:
        members: dict[int, list[tuple[Place, int]]] = defaultdict(list)
        fixed = {self._root(label) for label in self._fixed}
        for place, labels in self._places.items():
            for index, label in enumerate(labels.tolist()):
                root = self._root(label)
                if root not in fixed:
                    members[root].append((place, index))
        alike: dict[tuple[tuple[Place, int], ...], list[dict[Place, list[int]]]] = defaultdict(list)
        for listed in members.values():
            at: dict[Place, list[int]] = defaultdict(list)
            for place, index in listed:
                at[place].append(index)
            alike[tuple((place, len(indices)) for place, indices in at.items())].append(at)
        return [
            Coupled(
                {place: torch.tensor([unit[place] for unit in units]) for place, _ in kind},
                makers=tuple(place.tensor for place, _ in kind if place in self._made),
                takers=tuple(place.tensor for place, _ in kind if place in self._taken),
            )
            for kind, units in alike.items()
        ]

    def _call(self, node: fx.Node) -> Any:  # noqa: PLR0911 -- one line a kind of operator
        if node.target is operator.getitem:
            source = self._values.get(node.args[0])  # type: ignore[arg-type]
            return source[int(node.args[1])] if isinstance(source, tuple) else source  # type: ignore[arg-type]
        if not isinstance(node.target, torch._ops.OpOverload):
            return None
        name = node.target._schema.name.removeprefix("aten::")
        if name == "linear":
            return self._product(node, self._dims(node.args[0]) - 1)
        if name in {"conv2d", "conv1d", "convolution"}:
            return self._convolution(node)
        if name == "embedding" and isinstance(weight := self._value(node.args[0]), _Weight):
            return _Channels(self._dims(node) - 1, self._at(weight, 1))
        if name in _NORMS:
            return self._norm(node)
        if name in _MOVES:
            return self._move(node)
        if name in _REDUCTIONS:
            return self._reduction(node)
        if name in _POOLS:
            found = self._value(node.args[0])
            if isinstance(found, _Channels) and found.dim < self._dims(node.args[0]) - 2:
                return found
        if name in _POINTWISE or is_pointwise(node.target):
            return self._pointwise(node)
        self._fix((node.args, node.kwargs))
        return None

    def _product(self, node: fx.Node, dim: int) -> _Channels | None:
        """A product with a weight [out, in, …] over dimension `dim`: its inputs end, its outputs begin."""
        source, weight = self._value(node.args[0]), self._value(node.args[1])
        bias = self._value(node.args[2]) if len(node.args) > 2 else None
        if not isinstance(weight, _Weight) or not (bias is None or isinstance(bias, _Weight)):
            self._fix((node.args, node.kwargs))
            return None
        taken, given = self._at(weight, 1), self._at(weight, 0)
        self._taken.add(Place(weight.name, 1))
        self._made.add(Place(weight.name, 0))
        if isinstance(source, _Channels) and source.dim == dim:
            self._join(source.labels, taken)
        else:
            self._fix(node.args[0])
            self._fixed.update(taken.tolist())
        if isinstance(bias, _Weight):
            self._join(self._at(bias, 0), given)
        return _Channels(dim, given)

    def _convolution(self, node: fx.Node) -> _Channels | None:
        schema = node.target._schema  # type: ignore[union-attr]
        names = [argument.name for argument in schema.arguments]
        told = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
        if told.get("transposed"):
            self._fix((node.args, node.kwargs))
            return None
        groups = told.get("groups", 1)
        if groups == 1:
            return self._product(node, 1)
        source, weight, bias = (self._value(argument) for argument in (*node.args, None)[:3])
        if isinstance(weight, _Weight) and isinstance(source, _Channels) and source.dim == 1:
            given = self._at(weight, 0)
            if groups == given.numel() == source.labels.numel():  # a channel each
                self._join(source.labels, given)
                if isinstance(bias, _Weight):
                    self._join(self._at(bias, 0), given)
                return _Channels(1, given)
        self._fix((node.args, node.kwargs))
        return None

    def _norm(self, node: fx.Node) -> Any:
        source = self._value(node.args[0])
        weights = [value for value in map(self._value, node.args[1:5]) if value is not None]
        if not isinstance(source, _Channels) or source.dim != 1 or not all(isinstance(one, _Weight) for one in weights):
            self._fix((node.args, node.kwargs))
            return None
        for one in weights:
            self._join(self._at(one, 0), source.labels)
        return (source, None, None) if isinstance(node.meta.get("val"), (tuple, list)) else source

    def _move(self, node: fx.Node) -> Any:
        sources = [one for one in _nodes((node.args, node.kwargs)) if isinstance(self._value(one), _Channels)]
        before = {label for one in sources for label in self._values[one].labels.tolist()}
        if not before:
            if any(isinstance(self._value(one), _Weight) for one in _nodes(node.args)):
                self._fix(node.args)
            return None
        args, kwargs = fx.map_arg((node.args, node.kwargs), self._labels)
        name = node.target._schema.name.removeprefix("aten::")  # type: ignore[union-attr]
        if name in {"constant_pad_nd", "pad"}:
            args, kwargs = (*args[:2], *(["constant"] if name == "pad" else []), _FIXED), {}
        if name == "_to_copy":
            kwargs = {}
        # A view of the value may be none of its labels, whose elements lie in another order.
        move = torch.ops.aten.reshape.default if name in {"view", "_unsafe_view"} else node.target
        moved = move(*args, **kwargs)  # type: ignore[operator]
        found = [self._channels(one) for one in (moved if isinstance(moved, (tuple, list)) else (moved,))]
        after = [set() if one is None else set(one.labels.tolist()) - {_FIXED} for one in found]
        if any(labels != before - {_FIXED} for labels in after):
            self._fix((node.args, node.kwargs))
            return None
        return tuple(found) if isinstance(moved, (tuple, list)) else found[0]

    def _labels(self, node: fx.Node) -> Any:
        """The value's elements as labels; sizes as they were in the example."""
        shown = node.meta.get("val")
        if not isinstance(shown, Tensor):
            return int(shown) if isinstance(shown, torch.SymInt) else shown
        value = self._values[node]
        shape = [int(size) for size in shown.shape]
        if not isinstance(value, _Channels):
            return torch.full(shape, _FIXED)
        wide = [1] * len(shape)
        wide[value.dim] = shape[value.dim]
        return value.labels.reshape(wide).expand(shape).contiguous()

    @staticmethod
    def _channels(labels: Tensor) -> _Channels | None:
        """The one dimension along which labels differ, if it is one. Elements that are _FIXED may lie anywhere."""
        for dim in range(labels.dim()):
            rows = labels.transpose(0, dim).reshape(labels.shape[dim], -1)
            highest = rows.amax(1)
            lowest = torch.where(rows == _FIXED, highest.unsqueeze(1), rows).amin(1)
            if torch.equal(highest, lowest) and torch.unique(highest).numel() > 1:
                return _Channels(dim, highest)
        return None

    def _reduction(self, node: fx.Node) -> _Channels | None:
        source = self._value(node.args[0])
        dims = node.args[1] if len(node.args) > 1 else None
        if not isinstance(source, _Channels) or not isinstance(dims, (list, tuple, int)):
            self._fix(node.args)
            return None
        rank = self._dims(node.args[0])
        gone = {int(dim) % rank for dim in (dims if isinstance(dims, (list, tuple)) else [dims])}
        if source.dim in gone or not gone:
            self._fix(node.args)
            return None
        kept = bool(node.args[2]) if len(node.args) > 2 else bool(node.kwargs.get("keepdim", False))
        return source if kept else _Channels(source.dim - sum(dim < source.dim for dim in gone), source.labels)

    def _pointwise(self, node: fx.Node) -> _Channels | None:
        rank = self._dims(node)
        operands = [one for one in _nodes((node.args, node.kwargs)) if isinstance(one.meta.get("val"), Tensor)]
        known = [one for one in operands if isinstance(self._value(one), _Channels)]
        if not known:
            if any(isinstance(self._value(one), _Weight) for one in operands):
                self._fix((node.args, node.kwargs))
            return None
        first = self._values[known[0]]
        dim = first.dim + rank - self._dims(known[0])
        for one in operands:
            own = dim - rank + self._dims(one)
            size = int(one.meta["val"].shape[own]) if own >= 0 else 1
            value = self._values.get(one)
            if isinstance(value, _Channels) and value.dim == own and size == first.labels.numel():
                self._join(value.labels, first.labels)
            elif isinstance(value, _Weight) and size == first.labels.numel():
                self._join(self._at(value, own), first.labels)
            elif isinstance(value, _Channels) or size != 1:
                self._fix((node.args, node.kwargs))
                return None
        return _Channels(dim, first.labels)

    def _value(self, argument: Any) -> Any:
        return self._values.get(argument) if isinstance(argument, fx.Node) else None

    @staticmethod
    def _dims(argument: Any) -> int:
        shown = argument.meta["val"]
        return len((shown[0] if isinstance(shown, (tuple, list)) else shown).shape)

    def _at(self, weight: _Weight, dim: int) -> Tensor:
        place = Place(weight.name, dim)
        if place not in self._places:
            first, size = len(self._parents), self._shapes[weight.name][dim]
            self._parents.extend(range(first, first + size))
            self._places[place] = torch.arange(first, first + size)
        return self._places[place]

    def _root(self, label: int) -> int:
        while self._parents[label] != label:
            self._parents[label] = self._parents[self._parents[label]]
            label = self._parents[label]
        return label

    def _join(self, these: Tensor, those: Tensor) -> None:
        for a, b in zip(these.tolist(), those.tolist(), strict=True):
            if _FIXED in (a, b):
                self._fixed.update(label for label in (a, b) if label != _FIXED)
            else:
                low, high = sorted((self._root(a), self._root(b)))
                self._parents[high] = low

    def _fix(self, arguments: Any) -> None:
        """Whatever reaches here stays."""
        for node in _nodes(arguments):
            value = self._values.get(node)
            for one in value if isinstance(value, tuple) else (value,):
                if isinstance(one, _Channels):
                    self._fixed.update(label for label in one.labels.tolist() if label != _FIXED)
                elif isinstance(one, _Weight):
                    for dim in range(len(self._shapes[one.name])):
                        self._fixed.update(self._at(one, dim).tolist())


def _nodes(arguments: Any) -> Iterable[fx.Node]:
    found: list[fx.Node] = []
    fx.map_arg(arguments, found.append)
    return found
