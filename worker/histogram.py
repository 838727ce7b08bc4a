"""Durations counted in buckets that grow with them: small to send, added up over processes, read as quantiles.

Eight buckets for each power of two of microseconds, so a quantile is within about 6 % of the truth.
"""

from collections.abc import Mapping
from typing import Final

_SUB_BITS: Final = 3
BUCKETS: Final = 320
"""The last one holds whatever is longer than about 9 hours."""


def bucket_of(seconds: float) -> int:
    """The bucket, 0 to BUCKETS - 1, of a duration; what is negative is in the first."""
    microseconds = max(0, int(seconds * 1e6))
    exponent = microseconds.bit_length() - 1 - _SUB_BITS
    if exponent <= 0:
        return microseconds
    return min(BUCKETS - 1, (exponent << _SUB_BITS) + (microseconds >> exponent))


def seconds_of(bucket: int) -> float:
    """The middle of a bucket."""
    exponent = max(0, (bucket >> _SUB_BITS) - 1)
    if not exponent:
        return (bucket + 0.5) / 1e6
    return ((bucket - (exponent << _SUB_BITS)) + 0.5) * (1 << exponent) / 1e6


def quantile(counts: Mapping[int, int], share: float) -> float:
    """Seconds that `share` (0 to 1) of what was counted took at most; 0 where nothing was."""
    total = sum(counts.values())
    if total <= 0:
        return 0.0
    wanted, seen = share * total, 0
    for bucket in sorted(counts):
        seen += counts[bucket]
        if seen >= wanted:
            return seconds_of(bucket)
    return seconds_of(max(counts))
