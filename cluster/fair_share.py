"""Who gets the room where models want more than there is: a pure function.

Every pipeline has its minimum. What is left goes replica by replica to the one with the least dominant share (Ghodsi et
al., "Dominant Resource Fairness", NSDI 2011), divided by its weight, of those that still want more; a lower priority
number goes before any higher. So a model that is flooded takes what others leave, and never what is theirs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

SLACK = 1e-6


@dataclass(frozen=True, slots=True)
class Claim:
    """What one pipeline asks for. bundles: what a replica of each stage takes, by resource.

    floor: replicas of each stage that it gets in any case. wanted: that it asks for.
    after: places of claims that must have all that they ask for, or no more room for it, before this one gets more.
    """

    bundles: tuple[Mapping[str, float], ...]
    floor: tuple[int, ...]
    wanted: tuple[int, ...]
    priority: int = 1
    weight: float = 1.0
    after: tuple[int, ...] = ()


def fair_shares(claims: Sequence[Claim], capacity: Mapping[str, float]) -> list[tuple[int, ...]]:
    """Replicas of each stage of each claim, in order: no more than wanted, and within capacity beyond the floors."""
    granted = [[min(low, high) for low, high in zip(claim.floor, claim.wanted, strict=True)] for claim in claims]
    free = dict(capacity)
    for claim, counts in zip(claims, granted, strict=True):
        for bundle, count in zip(claim.bundles, counts, strict=True):
            _take(free, bundle, count)
    open_ = set(range(len(claims)))
    while open_:
        may = (one for one in open_ if open_.isdisjoint(claims[one].after))
        index = min(may, key=lambda one: (claims[one].priority, _share(claims[one], granted[one], capacity), one))
        stage = _next_stage(claims[index], granted[index], free)
        if stage is None:
            open_.discard(index)
            continue
        granted[index][stage] += 1
        _take(free, claims[index].bundles[stage], 1)
    return [tuple(counts) for counts in granted]


def _share(claim: Claim, counts: Sequence[int], capacity: Mapping[str, float]) -> float:
    """The largest share of any resource that the claim holds, over its weight."""
    held: dict[str, float] = {}
    for bundle, count in zip(claim.bundles, counts, strict=True):
        for kind, amount in bundle.items():
            held[kind] = held.get(kind, 0.0) + amount * count
    shares = (amount / capacity[kind] for kind, amount in held.items() if capacity.get(kind, 0.0) > 0)
    return max(shares, default=0.0) / claim.weight


def _next_stage(claim: Claim, counts: Sequence[int], free: Mapping[str, float]) -> int | None:
    """The stage that is furthest from what it wants and still fits: a pipeline is as fast as its slowest stage."""
    lacking = [
        stage
        for stage, (have, want) in enumerate(zip(counts, claim.wanted, strict=True))
        if have < want and _fits(claim.bundles[stage], free)
    ]
    return min(lacking, key=lambda stage: (counts[stage] / claim.wanted[stage], stage), default=None)


def _fits(bundle: Mapping[str, float], free: Mapping[str, float]) -> bool:
    return all(free.get(kind, 0.0) + SLACK >= amount for kind, amount in bundle.items())


def _take(free: dict[str, float], bundle: Mapping[str, float], count: int) -> None:
    for kind, amount in bundle.items():
        free[kind] = free.get(kind, 0.0) - amount * count
