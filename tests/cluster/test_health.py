from dataclasses import replace

import pytest

from cluster.backoff import LONGEST_PAUSE_S, Failures
from cluster.health import HealthLimits, Heard, judge
from cluster.world import Phase

LIMITS = HealthLimits(frozen_after_s=10.0, start_within_s=600.0)
NEW = Heard(asked_at=0.0)
READY = Heard(asked_at=0.0, first_answer=5.0, ready=True)


@pytest.mark.parametrize(
    ("heard", "now", "phase", "why"),
    [
        (NEW, 1000.0, Phase.PENDING, ""),
        (replace(NEW, adopted=True), 1.0, Phase.UNKNOWN, ""),
        (replace(NEW, first_answer=5.0), 6.0, Phase.STARTING, ""),
        (replace(NEW, first_answer=5.0), 606.0, Phase.DEAD, "it was not ready within 600 s"),
        (READY, 1e6, Phase.READY, ""),
        (replace(READY, unanswered_since=20.0), 29.0, Phase.READY, ""),
        (replace(READY, unanswered_since=20.0), 31.0, Phase.DEAD, "it has not answered for 10 s"),
        (replace(NEW, adopted=True, unanswered_since=0.0), 11.0, Phase.DEAD, "it has not answered for 10 s"),
        (replace(NEW, adopted=True, first_answer=5.0, unanswered_since=5.0), 16.0, Phase.STARTING, ""),
        (replace(NEW, unanswered_since=0.0), 1000.0, Phase.PENDING, ""),
        (replace(READY, draining=True), 6.0, Phase.DRAINING, ""),
        (replace(READY, draining=True, unanswered_since=6.0), 17.0, Phase.DEAD, "it has not answered for 10 s"),
        (replace(READY, drained=True), 6.0, Phase.DRAINED, ""),
        (replace(READY, failed="its process died"), 6.0, Phase.DEAD, "its process died"),
    ],
)
def test_a_phase_follows_from_what_was_heard(heard: Heard, now: float, phase: Phase, why: str) -> None:
    assert judge(heard, now, LIMITS) == (phase, why)


def test_the_first_death_is_repaired_at_once_and_later_ones_ever_later() -> None:
    failures, pauses = Failures(), []
    for _ in range(12):
        failures = failures.after("it ran out of memory", now=100.0)
        pauses.append(failures.retry_at - 100.0)
    assert pauses[:5] == [0.0, 1.0, 2.0, 4.0, 8.0]
    assert pauses[-1] == LONGEST_PAUSE_S


def test_a_stage_that_is_held_back_says_why_until_its_time_has_come() -> None:
    failures = Failures().after("first", 0.0).after("it ran out of memory", 0.0)
    assert failures.held_back(0.5) == "its replicas die one after the other, the last: it ran out of memory"
    assert failures.held_back(1.0) == ""
    assert failures.note, "it may start, and has not shown yet that it lives"
