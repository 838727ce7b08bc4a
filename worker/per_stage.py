"""Settings that are one value for every stage, or a list with one for each; and what they come to for one stage."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from pydantic_core import PydanticCustomError

DEVICE = re.compile(r"cpu|cuda|cuda:\d{1,3}")
RESOURCE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:-]{0,127}")
LABEL = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
"""A value, or a name behind its prefix: what Ray takes, as Kubernetes does."""
LABEL_PREFIX = re.compile(rf"{LABEL.pattern}(?:\.{LABEL.pattern})*/")

MEMORY: Final = "memory"
"""What Ray calls a node's memory, as far as workers may have it."""
MIB: Final = 2**20
MOST_MEMORY_MIB: Final = 2**24
OF_THEIR_OWN: Final = {"CPU", "GPU", MEMORY, "object_store_memory"}
"""Kinds that `placement.resources` does not name."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class StageSettings:
    """What one replica of one stage takes. device: cpu, or cuda for a GPU that Ray picks, or cuda:N.

    resources: of Ray's kinds, besides CPU, GPU and memory. labels: that its node must have. memory_mib: 0: none is
    reserved.
    """

    cpus: float
    device: str
    resources: Mapping[str, float]
    labels: Mapping[str, str]
    memory_mib: int = 0

    @property
    def threads(self) -> int:
        """Threads that it computes with."""
        return max(1, int(self.cpus))

    @property
    def bundle(self) -> dict[str, float]:
        """All that it takes, in Ray's words: memory in bytes."""
        gpu = {"GPU": 1.0} if self.device == "cuda" else {}
        memory = {MEMORY: float(self.memory_mib * MIB)} if self.memory_mib else {}
        return {"CPU": self.cpus, **gpu, **memory, **self.resources}


def of_each(value: T | tuple[T, ...], stages: int) -> tuple[T, ...]:
    return value if isinstance(value, tuple) else (value,) * stages


def check_whole(least: int, value: object) -> object:
    """One whole number, or a list with one for each stage."""
    counts = value if isinstance(value, list | tuple) else (value,)
    if not counts or any(type(count) is not int or not least <= count <= 1024 for count in counts):
        raise PydanticCustomError(
            "whole",
            "expected a whole number from {least} to 1024, or a list with one for each stage such as [2, 1]",
            {"least": least},
        )
    return tuple(counts) if isinstance(value, list | tuple) else value


def check_most(value: object) -> object:
    return None if value is None else check_whole(1, value)


def check_cpus(value: object) -> object:
    numbers = value if isinstance(value, list | tuple) else (value,)
    if not numbers or any(type(number) not in (int, float) or not 0 < number <= 1024 for number in numbers):
        raise PydanticCustomError("cpus", "expected a number above 0 and up to 1024, or a list with one for each stage")
    return tuple(map(float, numbers)) if isinstance(value, list | tuple) else float(numbers[0])


def check_memory(value: object) -> object:
    amounts = value if isinstance(value, list | tuple) else (value,)
    if not amounts or any(type(amount) is not int or not 0 <= amount <= MOST_MEMORY_MIB for amount in amounts):
        raise PydanticCustomError(
            "memory",
            "expected a whole number of MiB from 0 to {most}, or a list with one for each stage such as [512, 2048]",
            {"most": MOST_MEMORY_MIB},
        )
    return tuple(amounts) if isinstance(value, list | tuple) else value


def check_device(value: object) -> object:
    devices = value if isinstance(value, list | tuple) else (value,)
    if not devices or not all(isinstance(device, str) and DEVICE.fullmatch(device) for device in devices):
        raise PydanticCustomError("device", "expected cpu, cuda or cuda:N, or a list with one for each stage")
    return tuple(devices) if isinstance(value, list | tuple) else value


def check_resources(value: object) -> object:
    return _mappings(
        value,
        lambda amount: type(amount) in (int, float) and 0 < amount <= 1_000_000,
        "expected names and amounts above 0 such as {accelerator: 1}, or a list with such a mapping for each stage; "
        "CPU, GPU and memory are `cpus`, `device` and `memory_mib`",
        lambda name: bool(RESOURCE_NAME.fullmatch(name)) and name not in OF_THEIR_OWN,
    )


def check_labels(value: object) -> object:
    return _mappings(
        value,
        lambda label: isinstance(label, str) and bool(LABEL.fullmatch(label)),
        "expected names and values such as {zone: a}, of up to 63 letters, digits, '-', '_' and '.', the first and the "
        "last a letter or digit, or a list with such a mapping for each stage",
        _is_label_name,
    )


def _is_label_name(name: str) -> bool:
    prefix = LABEL_PREFIX.match(name)
    return bool(LABEL.fullmatch(name[prefix.end() :] if prefix else name)) and len(name) < 253 + 64


def _mappings(
    value: object, is_value: Callable[[Any], bool], wanted: str, is_name: Callable[[str], bool]
) -> tuple[dict[str, Any], ...] | dict[str, Any]:
    found = value if isinstance(value, list | tuple) else (value,)
    for each in found:
        if not isinstance(each, dict) or not all(
            isinstance(name, str) and is_name(name) and is_value(one) for name, one in each.items()
        ):
            raise PydanticCustomError("mapping", wanted)
    return tuple(found) if isinstance(value, list | tuple) else found[0]
