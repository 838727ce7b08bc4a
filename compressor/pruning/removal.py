"""Removes units from weights for good, and proves that the model then gives what it gave with those units masked."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import torch
from torch import Tensor, nn

from compressor.capture import Flat, without_fast_path
from compressor.profiling.measure import distance
from compressor.pruning.coupling import Place
from compressor.step import Change
from worker.errors import InvalidRequest, first_line

_TOLERANCE: Final = 1e-4
"""Removal and masking differ only by the order of sums."""
_ROUNDINGS: Final = 2
"""The same in short floats: of the distance between 1 and the next number. Twelve layers in fp16 came to 0.3 of it."""

Gone = Mapping[Place, Tensor]
"""For each place the indices that go."""


def remove_(module: nn.Module, gone: Gone, examples: Sequence[Tensor]) -> None:
    """Removes from every place its indices, and checks it on the examples.

    Raises:
        InvalidRequest: the module computes something else afterwards, or nothing: its code counts on its sizes.
    """
    mask_inputs_(module, gone)
    compare(module, examples, lambda: shrink_(module, gone))


def compare(module: nn.Module, examples: Sequence[Tensor], change: Callable[[], None]) -> None:
    """Runs the module, changes it, and runs it again.

    Raises:
        InvalidRequest: it does not give the same.
    """
    run = Flat(module.eval())
    with torch.no_grad(), without_fast_path():
        expected = run(*examples)
        change()
        try:
            found = run(*examples)
        except (RuntimeError, ValueError, IndexError) as error:
            raise InvalidRequest(
                f"{type(module).__name__} does not run without what was removed: its code counts on its sizes "
                f"({first_line(error)[:200]}); leave those layers out"
            ) from error
    apart = distance(found, expected)
    if not apart <= tolerance(module, expected):
        raise InvalidRequest(
            f"{type(module).__name__} gives something else without what was removed than with it masked (by {apart:.2g}"
            " of its size): its code counts on its sizes; leave those layers out"
        )


def tolerance(module: nn.Module, outputs: Sequence[Tensor]) -> float:
    """How far apart two results may be that only rounding keeps apart, by the shortest floats that are held."""
    held = (tensor.dtype for tensor in (*module.parameters(), *module.buffers(), *outputs))
    steps = [torch.finfo(dtype).eps for dtype in held if dtype.is_floating_point]
    return max(_TOLERANCE, _ROUNDINGS * max(steps, default=0.0))


def own_bytes(module: nn.Module) -> dict[str, int]:
    """Bytes of what each module in it holds itself, by name; a tensor that several hold counts for the first."""
    seen: set[tuple[int, int]] = set()
    found: dict[str, int] = {}
    for name, part in module.named_modules():
        held = {
            (tensor.data_ptr(), tensor.numel()): tensor.numel() * tensor.element_size()
            for tensor in (*part.parameters(recurse=False), *part.buffers(recurse=False))
        }
        found[name] = sum(size for place, size in held.items() if place not in seen)
        seen |= held.keys()
    return found


def told(module: nn.Module, before: Mapping[str, int], whats: Mapping[str, str]) -> list[Change]:
    """What became of the layers in `whats`, each with all in it, and of those that lost inputs or scales with them.

    before: what `own_bytes` gave before anything was removed. All changes together are the model's.
    """
    after = own_bytes(module)
    changes = []
    counted: set[str] = set()
    for name, what in whats.items():
        within = f"{name}." if name else ""
        inside = [one for one in before if one not in counted and (one == name or one.startswith(within))]
        counted.update(inside)
        changes.append(Change(name, what, sum(before[one] for one in inside), sum(after[one] for one in inside)))
    others = [one for one in before if one not in counted and before[one] != after[one]]
    return changes + [Change(one, "lost what it took of these", before[one], after[one]) for one in others]


def mask_inputs_(module: nn.Module, gone: Gone) -> None:
    """Zeroes what layers multiply the units with: they then have no influence."""
    tensors = dict(module.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for place, indices in gone.items():
            weight = tensors.get(place.tensor)
            if place.dim == 1 and weight is not None and weight.dim() > 1:
                weight.index_fill_(1, indices.reshape(-1).to(weight.device), 0)


def shrink_(module: nn.Module, gone: Gone) -> None:
    """Takes the indices out of every weight, wherever it is used, and tells the layers their new sizes."""
    by_tensor: dict[str, dict[int, Tensor]] = defaultdict(dict)
    for place, indices in gone.items():
        by_tensor[place.tensor][place.dim] = indices.reshape(-1)
    owners = _owners(module)
    for name, dims in by_tensor.items():
        holders, tensor = owners[name]
        smaller = tensor.detach()
        for dim, indices in dims.items():
            kept = torch.ones(smaller.shape[dim], dtype=torch.bool)
            kept[indices] = False
            smaller = smaller.index_select(dim, kept.nonzero()[:, 0])
        smaller = smaller.contiguous()
        new = nn.Parameter(smaller, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else smaller
        for holder, attribute in holders:
            setattr(holder, attribute, new)
            _tell_sizes(holder)


def _owners(module: nn.Module) -> dict[str, tuple[list[tuple[nn.Module, str]], Tensor]]:
    """For each weight's names, every module that holds it and under which name."""
    holders: dict[int, list[tuple[nn.Module, str]]] = defaultdict(list)
    named: dict[str, Tensor] = {}
    for path, owner in module.named_modules(remove_duplicate=False):
        for attribute, tensor in (*owner._parameters.items(), *owner._buffers.items()):
            if tensor is not None:
                named[f"{path}.{attribute}" if path else attribute] = tensor
                if (owner, attribute) not in holders[id(tensor)]:
                    holders[id(tensor)].append((owner, attribute))
    return {name: (holders[id(tensor)], tensor) for name, tensor in named.items()}


def _tell_sizes(layer: nn.Module) -> None:
    match layer:
        case nn.Linear():
            layer.out_features, layer.in_features = layer.weight.shape
        case nn.Conv1d() | nn.Conv2d() | nn.Conv3d():
            if layer.groups > 1:
                layer.groups = layer.weight.shape[0]  # a channel each: the only grouped ones that lose channels
            layer.out_channels, layer.in_channels = layer.weight.shape[0], layer.weight.shape[1] * layer.groups
        case nn.modules.batchnorm._BatchNorm() if layer.weight is not None:
            layer.num_features = layer.weight.shape[0]
        case nn.Embedding():
            layer.embedding_dim = layer.weight.shape[1]
