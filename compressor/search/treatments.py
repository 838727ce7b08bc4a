"""What may be done to a group of layers, and how choices for all groups become one recipe."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from compressor.step import Step
from compressor.steps import KINDS, described, read_step
from worker.errors import InvalidRequest
from worker.processor import vector_flags

Template = Mapping[str, Any]
"""A step as a recipe holds it, without `layers`."""

MOST_TREATMENTS: Final = 32


@dataclass(frozen=True, slots=True)
class Treatment:
    """Steps that are done together, in their order. `name` is for people."""

    name: str
    templates: tuple[Template, ...]


def treatment(*templates: Template) -> Treatment:
    """The treatment of these steps.

    Raises:
        InvalidRequest: one is not a step.
    """
    for template in templates:
        if "layers" in template:
            raise InvalidRequest(f"treatment {dict(template)}: it names layers; which ones is what the search finds")
        read_step(template, place="treatment")
    return Treatment(" + ".join(_named(template) for template in templates), templates)


def _named(template: Template) -> str:
    told = [f"{key} {value}" for key, value in template.items() if key != "kind"]
    return f"{template['kind']}{' (' + ', '.join(told) + ')' if told else ''}"


_CPU: Final[tuple[tuple[Template, ...], ...]] = (
    ({"kind": "int8_dynamic"},),
    ({"kind": "int8_static"},),
)
_BF16: Final[tuple[tuple[Template, ...], ...]] = (({"kind": "bf16"},),)
"""Where the processor computes in it: slower than int8, and next to nothing is lost."""
_CUDA: Final[tuple[tuple[Template, ...], ...]] = (
    ({"kind": "bf16"},),
    ({"kind": "fp8"},),
    ({"kind": "int8_dynamic"},),
)
"""Formats of weights alone save no time there either: compiled code has them decoded."""
_SMALL: Final[tuple[tuple[Template, ...], ...]] = (
    ({"kind": "int8_dynamic"},),
    ({"kind": "int8_weight_only"},),
    ({"kind": "int4_weight_only"},),
)
"""Where the objective is size or memory: formats that save no time, too."""


def _cpu() -> tuple[tuple[Template, ...], ...]:
    return (*_CPU, *_BF16) if {"avx512_bf16", "amx_bf16"} & set(vector_flags()) else _CPU


def everywhere(item: Treatment) -> tuple[Step, ...]:
    """The treatment's steps on the whole model."""
    return tuple(steps_for(template, ["*"]) for template in item.templates)


def trains(item: Treatment) -> bool:
    return any(step.needs_training() for step in everywhere(item))


def usual_treatments(device: str, *, timed: bool) -> tuple[Treatment, ...]:
    """What is tried where nobody says otherwise, the most promising first: in this order the whole model is treated."""
    listed = _SMALL if not timed else _cpu() if device == "cpu" else _CUDA
    return tuple(treatment(*templates) for templates in listed if all(item["kind"] in KINDS for item in templates))


def read_treatments(path: Path) -> tuple[Treatment, ...]:
    """Treatments from a YAML file: a list, the most promising first, each a step or a list of steps, without `layers`.

    Raises:
        InvalidRequest: naming the place and the key.
    """
    try:
        listed = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InvalidRequest(f"treatments {str(path)!r}: cannot be read: {error}") from error
    if not isinstance(listed, list) or not 1 <= len(listed) <= MOST_TREATMENTS:
        raise InvalidRequest(f"treatments {str(path)!r}: expected a list of 1 to {MOST_TREATMENTS} steps")
    found = []
    for place, item in enumerate(listed):
        templates = item if isinstance(item, list) else [item]
        if not templates or not all(isinstance(template, dict) for template in templates):
            raise InvalidRequest(f"treatments {str(path)!r}: {place}: expected a step or a list of steps, not {item!r}")
        try:
            found.append(treatment(*templates))
        except (InvalidRequest, TypeError) as error:
            raise InvalidRequest(f"treatments {str(path)!r}: {place}: {error}") from error
    return tuple(found)


def steps_for(template: Template, layers: Sequence[str]) -> Step:
    """The template's step, on these layers."""
    return read_step({**template, "layers": list(layers)})


def merged(steps: Sequence[Step]) -> tuple[Step, ...]:
    """One recipe of the steps of several groups: steps that differ in their layers only become one; by phase.

    Steps of one phase stay in the order in which their first came.
    """
    layers: dict[str, list[str]] = {}
    templates: dict[str, dict[str, Any]] = {}
    for step, mapping in zip(steps, described(steps), strict=True):
        template = {key: value for key, value in mapping.items() if key != "layers"}
        key = repr(sorted(template.items()))
        templates[key] = template
        layers.setdefault(key, []).extend(step.layers)
    made = [steps_for(templates[key], list(dict.fromkeys(names))) for key, names in layers.items()]
    return tuple(sorted(made, key=lambda step: step.phase))
