"""Loads for the simulator: requests that come by themselves, and callers that wait for their answers."""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Open:
    """Requests come by themselves, `rate` a second.

    variation: of the times between them, standard deviation over mean: 1 is a Poisson process, 0 a clock; above 1 they
      come in bursts (Gamma-distributed times, as AlpaServe's evaluation draws them).
    """

    rate: float
    variation: float = 1.0

    def gaps(self, chance: random.Random) -> Iterator[float]:
        """Seconds between requests, without end."""
        if self.variation <= 0:
            while True:
                yield 1.0 / self.rate
        shape = self.variation**-2
        scale = 1.0 / (self.rate * shape)
        while True:
            yield chance.gammavariate(shape, scale)


@dataclass(frozen=True, slots=True)
class Closed:
    """`callers`, each of which sends its next request when it has the answer to the last."""

    callers: int


Load = Open | Closed


def percentile(ordered: list[float], share: float) -> float:
    """Of an ascending list, by the nearest rank; NaN of an empty one."""
    if not ordered:
        return math.nan
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
