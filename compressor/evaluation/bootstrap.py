"""How sure a figure is: the percentile bootstrap over records, paired where two models answered the same records.

Method: B. Efron, R. Tibshirani, An Introduction to the Bootstrap, 1993, chapters 13 and 16. A resample is told by how
many times each record was drawn, so that a statistic weighs records instead of copying them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from worker.errors import InvalidRequest

Floats = NDArray[np.float64]

Statistic = Callable[[Floats], Floats]
"""counts [resamples, records] → the figure of each resample [resamples]."""

BOOTSTRAP: Final = "percentile bootstrap"

_AT_ONCE: Final = 2_000_000
"""Counts that are held at once."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure, and between which values it lies with the probability `level`; `method`: by which they were found."""

    value: float
    low: float
    high: float
    level: float
    method: str = BOOTSTRAP


def interval(
    statistic: Statistic, records: int, *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Interval:
    """The figure on all `records`, and its percentile interval over `resamples` draws.

    Raises:
        InvalidRequest: there are fewer than two records, or the figure is not a number on them or on a resample.
    """
    if records < 2:
        raise InvalidRequest(f"data: {records} records; an interval needs at least 2")
    if not 0 < level < 1:
        raise InvalidRequest(f"level {level}: expected a probability between 0 and 1, such as 0.95")
    value = float(statistic(np.ones((1, records)))[0])
    generator = np.random.default_rng(seed)
    step = max(1, _AT_ONCE // records)
    drawn = [
        statistic(_counts(generator, min(step, resamples - first), records)) for first in range(0, resamples, step)
    ]
    found = np.concatenate(drawn)
    broken = int(np.count_nonzero(~np.isfinite(found)))
    if not np.isfinite(value) or broken:
        raise InvalidRequest(
            f"metric: {value} on all {records} records, not a number on {broken} of {resamples} resamples; "
            "give more records, or look for NaN in what the model gives"
        )
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high), level)


def _counts(generator: np.random.Generator, resamples: int, records: int) -> Floats:
    """How often each record is drawn in each resample: [resamples, records]."""
    drawn = generator.integers(0, records, size=(resamples, records))
    flat = (drawn + records * np.arange(resamples)[:, None]).ravel()
    return np.bincount(flat, minlength=resamples * records).reshape(resamples, records).astype(np.float64)


def paired_difference(
    found: Statistic, base: Statistic, records: int, *, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Interval:
    """`found` less `base`, both on the same records: every resample draws the same records for both.

    The interval is as good as the records are many and different. Where both models give the same of every record it is
    [0, 0], however few there are; `compressor.evaluation.paired_counts` is not deceived.

    Raises:
        InvalidRequest: as `interval`.
    """
    return interval(lambda counts: found(counts) - base(counts), records, level=level, resamples=resamples, seed=seed)
