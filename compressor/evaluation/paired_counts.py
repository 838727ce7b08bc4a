"""How sure a difference of two shares is, where both were counted on the same records: exact, also where next to
nothing changed. The bootstrap has no idea there: of records that all stay right it draws no other.

Method: N. Gaffke, Three test statistics for a nonparametric one-sided hypothesis on the mean of a nonnegative variable,
Mathematical Methods of Statistics 14, 2005; E. Learned-Miller, P. Thomas, A new confidence interval for the mean of a
bounded random variable, 2019 (arXiv:1905.06208). One record more, a lost one, is put to those that were seen, and every
record gets a random weight (Dirichlet, all ones): the bound is a quantile of the weighted mean. Where no answer got
better, this is the bound of C. Clopper and E. Pearson, Biometrika 26, 1934. That it holds is proven there, and
conjectured elsewhere; for what is counted here (lost, won, or as before) a test goes through all outcomes.
"""

import math
from typing import Final

import numpy as np

from compressor.evaluation.bootstrap import Floats, Interval

EXACT: Final = "exact for paired counts"

_HALVINGS: Final = 50


def paired_shares(worse: int, better: int, records: int, *, level: float) -> Interval:
    """The share of records that got worse less that of those that got better, from -1 to 1, with its interval.

    Each end is passed with a probability of at most (1 - `level`) / 2, whatever the two true shares are.
    """
    error = (1 - level) / 2
    return Interval(
        (worse - better) / records,
        -_bound(better, worse, records, error),
        _bound(worse, better, records, error),
        level,
        EXACT,
    )


def records_needed(share: float, *, level: float) -> float:
    """How many records prove that at most this `share` got worse, where not one answer changed; infinite for 0."""
    if share >= 1:
        return 0
    return math.ceil(math.log((1 - level) / 2) / math.log1p(-share)) if share > 0 else math.inf


def _bound(worse: int, better: int, records: int, error: float) -> float:
    """Above it the difference lies with the probability `error`."""
    low, high = -1.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if _chance_over(middle, worse + 1, better, records - worse - better) > error:
            low = middle
        else:
            high = middle
    return high


def _chance_over(difference: float, up: int, down: int, rest: int) -> float:
    """P(U - D > `difference`) for weights (U, D, R) of a Dirichlet distribution with these whole parameters.

    With gamma variables in the place of weights: (1 - d) U > (1 + d) D + d R for a difference d >= 0. U is when the
    `up`-th event of a Poisson process comes, so fewer than `up` of its events come meanwhile: while D, and R, go by
    their number has a negative binomial distribution.
    """
    if difference < 0:
        return 1 - _chance_over(-difference, down, up, rest)
    if up == 0 or difference >= 1:
        return 0.0
    while_down = _negative_binomial(down, (1 - difference) / 2, up)
    while_rest = np.cumsum(_negative_binomial(rest, 1 - difference, up))
    return float(while_down @ while_rest[::-1])


def _negative_binomial(ends: int, chance: float, counts: int) -> Floats:
    """P(so many other events before the `ends`-th that has this `chance`), of 0, 1, … `counts` - 1."""
    numbers = np.arange(1, counts)
    with np.errstate(divide="ignore"):  # none where nothing must end, or nothing else can come: log 0
        steps = np.log((numbers + ends - 1) / numbers) + np.log1p(-chance)
    found: Floats = np.exp(np.cumsum(np.concatenate(([ends * math.log(chance)], steps))))
    return found
