"""What phase a worker is in, by what was heard of it. Pure: the time is handed in."""

from dataclasses import dataclass

from cluster.world import Phase

DRAIN_MARGIN_S = 5.0
"""A worker bounds its draining itself; this much later it is given up."""


@dataclass(frozen=True, slots=True)
class HealthLimits:
    """frozen_after_s: a worker that leaves a question unanswered this long is taken for dead.

    start_within_s: the longest from a worker's first answer until it is ready.
    """

    frozen_after_s: float = 10.0
    start_within_s: float = 600.0


@dataclass(frozen=True, slots=True)
class Heard:
    """What was heard of one worker; times on the controller's monotonic clock.

    adopted: its process was found by its name, not started by this controller. It may serve.
    first_answer: when it first answered anything; None: never.
    unanswered_since: when the oldest question was asked that it has not answered; None: no question is open.
    ready: it has told its address. draining, drained: since it was told to drain.
    failed: how it failed; empty: it did not.
    """

    asked_at: float
    adopted: bool = False
    first_answer: float | None = None
    unanswered_since: float | None = None
    ready: bool = False
    draining: bool = False
    drained: bool = False
    failed: str = ""


def judge(heard: Heard, now: float, limits: HealthLimits) -> tuple[Phase, str]:  # noqa: PLR0911 -- one line a case
    """The phase, and for DEAD why."""
    silent = now - heard.unanswered_since if heard.unanswered_since is not None else 0.0
    may_serve = heard.ready or (heard.adopted and heard.first_answer is None)
    if heard.failed:
        return Phase.DEAD, heard.failed
    if heard.drained:
        return Phase.DRAINED, ""
    if may_serve and silent > limits.frozen_after_s:
        return Phase.DEAD, f"it has not answered for {limits.frozen_after_s:g} s"
    if heard.draining:
        return Phase.DRAINING, ""
    if heard.ready:
        return Phase.READY, ""
    if heard.first_answer is None:
        return Phase.UNKNOWN if heard.adopted else Phase.PENDING, ""
    if now - heard.first_answer > limits.start_within_s:
        return Phase.DEAD, f"it was not ready within {limits.start_within_s:g} s"
    return Phase.STARTING, ""
