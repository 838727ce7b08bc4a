import math

from worker.hedging import Hedging


def test_the_delay_is_what_19_of_20_calls_stay_under() -> None:
    hedging = Hedging(0.05)
    assert hedging.delay_s == math.inf, "nothing is known yet"
    for number in range(512):
        hedging.took(0.5 if number % 50 == 0 else 0.010 + number % 10 / 1000)
    assert 0.018 <= hedging.delay_s <= 0.020


def test_no_more_than_its_share_is_sent_twice() -> None:
    hedging = Hedging(0.05, at_once=4)
    sent_twice = 0
    for _ in range(1000):
        hedging.took(0.01)
        sent_twice += hedging.may_hedge()
    assert 50 <= sent_twice <= 54
