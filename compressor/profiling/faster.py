"""Which of several modules that give the same is the fastest here: decided by measuring, on one thread."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from compressor.profiling.measure import clock_of, threads

_ROUNDS: Final = 9
_LEAST_S: Final = 2e-4
"""A round runs as often as fills this time, so that the clock's own steps do not show."""


@dataclass(frozen=True, slots=True)
class Fastest:
    """seconds: of each, for one call; the least of several rounds, as other work only ever adds."""

    name: str
    seconds: Mapping[str, float]


def fastest(forms: Mapping[str, nn.Module], example: Tensor, *, device: str = "cpu") -> Fastest:
    """Runs each of `forms` on `example`, in turns, so that a slow moment of the machine meets all of them."""
    clock = clock_of(device)
    best = dict.fromkeys(forms, float("inf"))
    with threads(1), torch.inference_mode():
        times = {}
        for name, form in forms.items():
            form(example)
            began = clock()
            form(example)
            times[name] = max(1, int(_LEAST_S / max(clock() - began, 1e-7)))
        for _ in range(_ROUNDS):
            for name, form in forms.items():
                began = clock()
                for _ in range(times[name]):
                    form(example)
                best[name] = min(best[name], (clock() - began) / times[name])
    return Fastest(min(best, key=best.__getitem__), best)
