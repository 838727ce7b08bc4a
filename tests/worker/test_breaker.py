from hypothesis import given
from hypothesis import strategies as st

from worker.breaker import CLOSED, LIMITS, Breaker, BreakerLimits


def failing(times: int, now: float = 100.0) -> Breaker:
    breaker = CLOSED
    for _ in range(times):
        breaker = breaker.after_failure(now)
    return breaker


def test_a_few_failures_are_forgiven_and_more_take_the_replica_out_for_a_pause() -> None:
    assert failing(LIMITS.failures - 1).allows(100.0)
    out = failing(LIMITS.failures)
    assert not out.allows(100.0 + 0.99 * LIMITS.pause_s)
    assert out.allows(100.0 + LIMITS.pause_s)


def test_after_the_pause_one_request_at_a_time_tries_it() -> None:
    trying = failing(LIMITS.failures).on_trial(102.0)
    assert not trying.allows(102.0)
    assert trying.allows(102.0 + LIMITS.pause_s), "a trial without an end does not keep it out for ever"


def test_requests_from_before_the_pause_do_not_make_it_longer() -> None:
    out = failing(LIMITS.failures)
    assert out.after_failure(100.5) == out


@given(trials=st.integers(1, 60), pause_s=st.floats(0.1, 5), longest_s=st.floats(5, 100))
def test_pauses_double_up_to_the_longest(trials: int, pause_s: float, longest_s: float) -> None:
    limits = BreakerLimits(failures=1, pause_s=pause_s, longest_pause_s=longest_s)
    breaker, now = CLOSED.after_failure(0.0, limits), 0.0
    for trial in range(trials):
        assert breaker.pause_s == min(longest_s, pause_s * 2.0**trial)
        now = breaker.until
        assert breaker.allows(now)
        breaker = breaker.on_trial(now).after_failed_trial(now, limits)
        assert not breaker.allows(now)
    assert not breaker.is_closed


@given(st.lists(st.sampled_from(["failure", "success", "wait"]), max_size=60))
def test_whatever_happens_it_is_out_for_a_bounded_time_and_a_success_closes_it(events: list[str]) -> None:
    breaker, now = CLOSED, 0.0
    for event in events:
        if event == "wait":
            now += 0.7
        elif event == "success":
            breaker = CLOSED
        elif breaker.is_closed:
            breaker = breaker.after_failure(now)
        elif breaker.allows(now):
            breaker = breaker.on_trial(now).after_failed_trial(now)
        assert breaker.until - now <= LIMITS.longest_pause_s
        assert breaker.is_closed == (breaker.failures < LIMITS.failures)
        assert breaker.is_closed <= breaker.allows(now)
