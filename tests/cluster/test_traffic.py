from hypothesis import given
from hypothesis import strategies as st

from cluster.traffic import SILENT_S, WINDOW_S, Counts, Lane, Report, Traffic
from cluster.world import Pipeline
from worker.histogram import bucket_of

ONE = Pipeline("minilm", 1)


def report(
    answered: int = 0, *, gateway: str = "a", inflight: int = 0, unplaced: int = 0, generation: int = 1
) -> Report:
    counts = Counts(arrived_rows=2 * answered, answered=answered, took={bucket_of(0.02): answered})
    return Report(gateway, generation, {ONE: Lane(inflight, unplaced, counts)})


def test_counts_are_what_grew_since_the_report_before() -> None:
    traffic = Traffic()
    traffic.heard(report(100), 0.0)
    traffic.heard(report(130), 1.0)
    traffic.heard(report(130), 1.5)
    assert traffic.over(ONE, WINDOW_S, 2.0).answered == 30, "what was counted before we knew the gateway is not new"
    assert traffic.rates(ONE, 2.0).requests_per_s == 30 / WINDOW_S
    assert 0.019 < traffic.rates(ONE, 2.0).p50_s < 0.021
    assert traffic.over(ONE, WINDOW_S, 1.0 + WINDOW_S).answered == 0
    assert traffic.total(ONE).answered == 30


def test_refusals_have_times_of_their_own_over_all_gateways() -> None:
    traffic = Traffic()
    for at, refused in ((0.0, 0), (1.0, 10)):
        for gateway, took_s in (("a", 0.001), ("b", 0.004)):
            counts = Counts(refused=refused, refusal_took={bucket_of(took_s): refused})
            traffic.heard(Report(gateway, 1, {ONE: Lane(counts=counts)}), at)
    rates = traffic.rates(ONE, 1.0)
    assert (rates.refused_per_s, rates.p99_s) == (20 / WINDOW_S, 0.0)
    assert 0.0009 < rates.refusal_p50_s < 0.0011
    assert 0.0036 < rates.refusal_p99_s < 0.0044


def test_gateways_add_up_and_one_that_falls_silent_holds_nothing() -> None:
    traffic = Traffic()
    traffic.heard(report(inflight=3, gateway="a"), 0.0)
    traffic.heard(report(inflight=4, gateway="b", unplaced=5), 2.0)
    assert traffic.inflight(ONE, 2.0) == 7
    assert traffic.inflight(ONE, SILENT_S + 1) == 4
    assert traffic.unplaced_rows(ONE, SILENT_S + 1) == 5
    assert traffic.inflight(ONE, SILENT_S + 3) == 0


def test_a_table_is_confirmed_when_every_gateway_that_is_heard_of_has_it() -> None:
    traffic = Traffic()
    assert not traffic.confirmed(7, 0.0), "nobody is heard of, and somebody may be there"
    traffic.heard(report(generation=6), 0.0)
    assert not traffic.confirmed(7, 1.0)
    traffic.heard(report(generation=7), 1.0)
    assert traffic.confirmed(7, 1.0)
    traffic.heard(report(generation=6, gateway="b"), 1.0)
    assert not traffic.confirmed(7, 1.0)
    traffic.heard(report(generation=7), 2.0)
    assert traffic.confirmed(7, 1.5 + SILENT_S), "b has fallen silent"
    assert not traffic.confirmed(7, 2.5 + SILENT_S)


def test_a_first_request_that_waits_is_told_once() -> None:
    traffic = Traffic()
    assert not traffic.heard(report(), 0.0)
    assert traffic.heard(report(unplaced=1), 0.1)
    assert not traffic.heard(report(unplaced=2), 0.2)
    assert not traffic.heard(report(), 0.3)
    assert traffic.heard(report(unplaced=1), 0.4)


def test_pipelines_that_are_gone_are_forgotten() -> None:
    traffic = Traffic()
    traffic.heard(report(1), 0.0)
    traffic.heard(report(2), 0.1)
    traffic.keep([])
    assert traffic.total(ONE).answered == 0


@given(st.lists(st.tuples(st.floats(0, 3), st.integers(0, 50), st.booleans()), max_size=60))
def test_whatever_gets_lost_or_begins_anew_no_rate_is_negative_and_nothing_is_counted_twice(
    story: list[tuple[float, int, bool]],
) -> None:
    traffic, now, answered, ever, process = Traffic(), 0.0, 0, 0, 0
    for step, more, anew in story:
        now += step
        if anew:
            process, answered = process + 1, 0
        answered += more
        ever += more
        traffic.heard(report(answered, gateway=str(process), inflight=1), now)
        traffic.heard(report(answered, gateway=str(process), inflight=1), now)
        assert 0 <= traffic.over(ONE, WINDOW_S, now).answered <= ever
        assert traffic.inflight(ONE, now) <= process + 1
    assert traffic.inflight(ONE, now + SILENT_S + 1) == 0
