"""Whether a roll-out goes on, is done, or is taken back: a pure function of what is seen of the old and the new.

The new pipeline comes up and warms up beside the old one → it gets a share of the requests and is watched → it gets all
of them → the old one drains. Until the last step the old one can take every request again at once.
"""

from dataclasses import dataclass, field

from cluster.state import Rollout
from cluster.traffic import Counts

ENOUGH_REQUESTS = 50
"""So many must have ended on the new pipeline before it is judged to be well."""
FEWEST_FAILURES = 3
"""Fewer failures than these prove nothing."""
WORSE_FAILURE_SHARE = 0.01
"""A new pipeline may fail this much more often, as a share of its requests."""
WORSE_LATENCY = 1.5
"""A new pipeline's p95 may be so many times the old one's."""
NEGLIGIBLE_S = 0.005
"""Latencies that differ by less are the same."""
DEATHS = 3
"""Replicas of the new pipeline that died: it does not start."""


@dataclass(frozen=True, slots=True)
class Seen:
    """ready: every replica of the new pipeline is that it takes to answer all requests. waits: why not, where more is
    known. deaths: of its replicas.

    coming_s: since the roll-out began. sharing_s: since the new pipeline got its present share.
    old, new: requests since then.
    """

    ready: bool
    coming_s: float
    sharing_s: float = 0.0
    waits: str = ""
    deaths: int = 0
    old: Counts = field(default_factory=Counts)
    new: Counts = field(default_factory=Counts)


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do yet."""

    why: str


@dataclass(frozen=True, slots=True)
class Share:
    """Give the new pipeline this share of the requests, percent."""

    percent: int
    why: str


@dataclass(frozen=True, slots=True)
class Finish:
    """The new pipeline serves, and the old one drains."""

    why: str


@dataclass(frozen=True, slots=True)
class TakeBack:
    """The old pipeline serves alone, and the new one drains."""

    why: str


Step = Wait | Share | Finish | TakeBack


def next_step(rollout: Rollout, seen: Seen) -> Step:
    if seen.deaths >= DEATHS:
        return TakeBack(f"{seen.deaths} of its replicas died{_because(seen)}")
    if not rollout.share:
        return _coming_up(rollout, seen)
    problem = worse(seen.old, seen.new)
    return TakeBack(problem) if problem else _watched(rollout, seen)


def _watched(rollout: Rollout, seen: Seen) -> Step:
    if seen.sharing_s < rollout.watch_s:
        return Wait(f"it is watched at {rollout.share} % for {rollout.watch_s:g} s")
    if seen.new.ended < ENOUGH_REQUESTS:
        return Wait(f"it is watched at {rollout.share} % until it has ended {ENOUGH_REQUESTS} requests")
    if not seen.ready and seen.sharing_s > rollout.watch_s + rollout.within_s:
        return TakeBack(f"it had not every replica ready within {rollout.within_s:g} s{_because(seen)}")
    if not seen.ready:
        return Wait(f"it is watched at {rollout.share} % until every replica of it is ready{_because(seen)}")
    return Finish(f"it answered {seen.new.answered} requests in {seen.sharing_s:.0f} s{_compared(seen)}")


def _coming_up(rollout: Rollout, seen: Seen) -> Step:
    if seen.ready:
        if rollout.canary == 100:
            return Finish("every replica of it is ready")
        return Share(rollout.canary, "every replica of it is ready")
    if seen.coming_s > rollout.within_s:
        return TakeBack(f"it was not ready within {rollout.within_s:g} s{_because(seen)}")
    return Wait(f"it comes up{_because(seen)}")


def worse(old: Counts, new: Counts) -> str:
    """In what the new pipeline is worse; empty where it is not, or where it is too early to tell."""
    bad = new.failed + new.missed
    if told := _more(bad, new.ended, old.failed + old.missed, old.ended):
        return f"{bad} of its {new.ended} requests failed or missed their deadline, {told}"
    if told := _more(new.refused, new.ended + new.refused, old.refused, old.ended + old.refused):
        return f"it refused {new.refused} requests, {told}"
    if new.answered >= ENOUGH_REQUESTS and old.answered >= ENOUGH_REQUESTS:
        now, then = new.quantile_s(0.95), old.quantile_s(0.95)
        if now > WORSE_LATENCY * then and now > then + NEGLIGIBLE_S:
            return f"95 % of its answers take up to {now * 1e3:.1f} ms, of the old one's {then * 1e3:.1f} ms"
    return ""


def _more(bad: int, of: int, old_bad: int, old_of: int) -> str:
    """Both shares, where that of the new pipeline is larger; else nothing."""
    if bad < FEWEST_FAILURES:
        return ""
    share, before = bad / of, old_bad / old_of if old_of else 0.0
    more = share > before + WORSE_FAILURE_SHARE
    return f"{100 * share:.1f} %, against {100 * before:.1f} % of the old one's" if more else ""


def _because(seen: Seen) -> str:
    return f": {seen.waits}" if seen.waits else ""


def _compared(seen: Seen) -> str:
    if not (seen.new.answered and seen.old.answered):
        return ""
    now, then = seen.new.quantile_s(0.95), seen.old.quantile_s(0.95)
    return f", 95 % of them within {now * 1e3:.1f} ms, against {then * 1e3:.1f} ms of the old one's"
