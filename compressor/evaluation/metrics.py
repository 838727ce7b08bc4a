"""Figures of a model's answers, each as a statistic over records that are counted several times (see `bootstrap`)."""

import numpy as np
from numpy.typing import ArrayLike

from compressor.evaluation.bootstrap import Floats, Statistic
from worker.errors import InvalidRequest


def mean(values: ArrayLike) -> Statistic:
    """The mean of one number a record, such as 1 where a class was right and 0 where not.

    Raises:
        InvalidRequest: a value is not a number.
    """
    numbers = _finite("values", values)
    return lambda counts: (counts @ numbers) / counts.sum(1)


def spearman(values: ArrayLike, labels: ArrayLike) -> Statistic:
    """Spearman's rank correlation of two numbers a record; ties get the mean of their ranks.

    Raises:
        InvalidRequest: not as many values as labels, or one is not a number.
    """
    a, b = _finite("values", values), _finite("labels", labels)
    if len(a) != len(b):
        raise InvalidRequest(f"labels: {len(b)} for {len(a)} values; expected one for each record")
    rank_a, rank_b = _ranker(a), _ranker(b)

    def statistic(counts: Floats) -> Floats:
        return _correlation(rank_a(counts), rank_b(counts), counts)

    return statistic


def perplexity(log_loss: ArrayLike, tokens: ArrayLike) -> Statistic:
    """exp of the mean loss of a token. `log_loss`: summed over each record's tokens, in nats; `tokens`: how many.

    Raises:
        InvalidRequest: a loss is not a number, or no token was predicted.
    """
    losses, numbers = _finite("log_loss", log_loss), _finite("tokens", tokens)
    if len(losses) != len(numbers):
        raise InvalidRequest(f"tokens: {len(numbers)} for {len(losses)} losses; expected one for each record")
    if numbers.sum() <= 0:
        raise InvalidRequest("tokens: none was predicted; give records of at least 2 tokens")
    return lambda counts: np.exp((counts @ losses) / (counts @ numbers))


def _finite(name: str, values: ArrayLike) -> Floats:
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.ndim != 1 or not len(numbers):
        raise InvalidRequest(f"{name}: shape {list(numbers.shape)}; expected one number for each record")
    broken = np.flatnonzero(~np.isfinite(numbers))
    if len(broken):
        raise InvalidRequest(
            f"{name}: {numbers[broken[0]]} in record {broken[0]} (of {len(broken)} such); the model or the data gives "
            "what is not a number"
        )
    return numbers


def _ranker(values: Floats) -> Statistic:
    """counts [resamples, records] → the mean rank of each record's value in each resample [resamples, records]."""
    _, group = np.unique(values, return_inverse=True)
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))

    def ranks(counts: Floats) -> Floats:
        sizes = np.add.reduceat(counts[:, order], starts, axis=1)
        last = np.cumsum(sizes, axis=1)
        found: Floats = (last - (sizes - 1) / 2)[:, group]
        return found

    return ranks


def _correlation(a: Floats, b: Floats, counts: Floats) -> Floats:
    """Pearson's correlation of rows, each column counted so many times. Not a number where one side is constant."""
    total = counts.sum(1, keepdims=True)
    a = a - (a * counts).sum(1, keepdims=True) / total
    b = b - (b * counts).sum(1, keepdims=True) / total
    spread = np.sqrt((counts * a * a).sum(1) * (counts * b * b).sum(1))
    with np.errstate(invalid="ignore", divide="ignore"):
        found: Floats = (counts * a * b).sum(1) / spread
        return found
