"""Which layers are decided together, and what may be done to each group: found by trying the steps on a copy."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from compressor.search.treatments import Template, Treatment, steps_for
from compressor.step import Context, Step
from worker.errors import ShardlineError


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to treat a group: the steps that do it."""

    treatment: str
    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class Group:
    """layers: by name. candidates: what may be done to them, beside nothing."""

    name: str
    layers: tuple[str, ...]
    candidates: tuple[Candidate, ...]


def find_groups(
    module: nn.Module, treatments: Sequence[Treatment], context: Context, *, most: int
) -> tuple[Group, ...]:
    """The groups of `module`: single layers, layers that some step can only change together, and, where that makes more
    than `most`, whole blocks (members of an `nn.ModuleList` or `nn.Sequential`). None: no treatment works on any layer.
    """
    templates = list({repr(item): item for each in treatments for item in each.templates}.values())
    layers = _layers(module, templates)
    scopes = {layer: _scope(module, layer) for layer in layers}
    first_of_kind = {str(item["kind"]): item for item in reversed(templates)}
    by_kind = {kind: _touched(module, item, layers, scopes, context) for kind, item in reversed(first_of_kind.items())}
    touched = {repr(item): by_kind[str(item["kind"])] for item in templates}
    together = [sets for found in touched.values() for sets in found.values()]
    names = _united(layers, together)
    if len(names) > most:
        names = _united(layers, [*together, *_blocks(layers, scopes)])
    return tuple(
        group
        for members in names
        if (group := Group(_name(members), members, _candidates(members, treatments, touched))).candidates
    )


def _layers(module: nn.Module, templates: Sequence[Template]) -> tuple[str, ...]:
    """Every layer that some step takes, in the model's order."""
    taken: set[str] = set()
    for template in templates:
        step = steps_for(template, ["*"])
        if step.takes and step.problem(module, [step]) is None:
            taken |= set(step.targets(module))
    return tuple(name for name, _ in module.named_modules() if name in taken)


def _scope(module: nn.Module, layer: str) -> str:
    """The innermost member of a list of modules that `layer` is in; "*" where it is in none."""
    parts = layer.split(".")
    for end in range(len(parts) - 1, 0, -1):
        if isinstance(module.get_submodule(".".join(parts[: end - 1])), (nn.ModuleList, nn.Sequential)):
            return ".".join(parts[:end])
    return "*"


def _touched(
    module: nn.Module, template: Template, layers: Sequence[str], scopes: Mapping[str, str], context: Context
) -> dict[str, frozenset[str]]:
    """By where the step is told to work (a layer, or a block), the layers that it changes there.

    One layer, and one block of each kind, is tried; those that are built alike behave alike.
    """
    found: dict[str, frozenset[str]] = {}
    for layer in layers:
        if type(module.get_submodule(layer)) in steps_for(template, ["*"]).takes:
            if not found and _changed(module, template, layer, layers, context) != {layer}:
                break
            step = steps_for(template, [layer])
            if step.problem(module, [step]) is None:
                found[layer] = frozenset({layer})
    if found:
        return found
    blocks = [scope for scope in dict.fromkeys(scopes.values()) if scope != "*"] or ["*"]
    tried: dict[str, tuple[str, frozenset[str]]] = {}
    for scope in blocks:
        kind = _kind(module, scope)
        if kind not in tried:
            tried[kind] = scope, _changed(module, template, scope, layers, context)
        first, changed = tried[kind]
        moved = frozenset(scope + layer.removeprefix(first) for layer in changed) if scope != first else changed
        if moved and moved <= set(layers):
            found[scope] = moved
    return found


def _kind(module: nn.Module, scope: str) -> str:
    """The same for blocks that are built alike."""
    if scope == "*":
        return scope
    block = module.get_submodule(scope)
    return f"{block!r} {[(name, tuple(tensor.shape)) for name, tensor in block.state_dict().items()]}"


def _changed(
    module: nn.Module, template: Template, where: str, layers: Sequence[str], context: Context
) -> frozenset[str]:
    step = steps_for(template, [where])
    if step.problem(module, [step]) is not None or step.device_problem(context.target) is not None:
        return frozenset()
    if step.needs_calibration() and not context.calibration:
        return frozenset()
    trial = copy.deepcopy(module)
    try:
        with torch.no_grad():
            changes = step.apply_(trial, context)
    except ShardlineError:
        return frozenset()  # it cannot be done there; elsewhere it may
    if not changes:  # a step on the captured graph: it changes what it takes
        return frozenset(layers) & frozenset(step.targets(module))
    after = dict(trial.named_modules())
    return frozenset(layer for layer in layers if _differs(module.get_submodule(layer), after.get(layer)))


def _differs(before: nn.Module, after: nn.Module | None) -> bool:
    if type(before) is not type(after) or after is None:
        return True
    old, new = before.state_dict(), after.state_dict()
    return old.keys() != new.keys() or any(
        old[name].shape != new[name].shape
        or old[name].dtype != new[name].dtype
        or not torch.equal(old[name], new[name])
        for name in old
    )


def _blocks(layers: Sequence[str], scopes: Mapping[str, str]) -> list[frozenset[str]]:
    return [
        frozenset(layer for layer in layers if scopes[layer] == scope)
        for scope in dict.fromkeys(scopes.values())
        if scope != "*"
    ]


def _united(layers: Sequence[str], together: Sequence[frozenset[str]]) -> list[tuple[str, ...]]:
    """The finest partition of `layers` that splits none of the sets, in the model's order."""
    root = {layer: layer for layer in layers}

    def find(layer: str) -> str:
        while root[layer] != layer:
            root[layer] = root[root[layer]]
            layer = root[layer]
        return layer

    for each in together:
        first, *others = sorted(each, key=layers.index)
        for other in others:
            root[find(other)] = find(first)
    members: dict[str, list[str]] = {}
    for layer in layers:
        members.setdefault(find(layer), []).append(layer)
    return [tuple(names) for names in members.values()]


def _name(layers: Sequence[str]) -> str:
    """What all the names begin with, and then the rest of each: "encoder.layer.0.{query, key}"."""
    if len(layers) == 1:
        return layers[0]
    parts = [layer.split(".") for layer in layers]
    shared = 0
    while all(len(part) > shared + 1 and part[shared] == parts[0][shared] for part in parts):
        shared += 1
    rest = ", ".join(".".join(part[shared:]) for part in parts)
    prefix = "".join(f"{part}." for part in parts[0][:shared])
    return f"{prefix}{{{rest}}}"


def _candidates(
    members: Sequence[str], treatments: Sequence[Treatment], touched: Mapping[str, Mapping[str, frozenset[str]]]
) -> tuple[Candidate, ...]:
    found = []
    for treatment in treatments:
        places = [
            [where for where, changed in touched[repr(template)].items() if changed <= set(members)]
            for template in treatment.templates
        ]
        if all(places):
            steps = tuple(
                steps_for(template, where) for template, where in zip(treatment.templates, places, strict=True)
            )
            found.append(Candidate(treatment.name, steps))
    return tuple(found)
