from dataclasses import replace

import pytest

from cluster.rollout import Finish, Seen, Share, TakeBack, Wait, next_step
from cluster.state import Rollout, ServedModel
from cluster.traffic import Counts
from worker.histogram import bucket_of
from worker.model_yaml import ModelYaml

TARGET = ServedModel(revision=2, config=ModelYaml(), replicas={2: (1,)})
ALL_AT_ONCE = Rollout(target=TARGET, within_s=60)
CANARY = Rollout(target=TARGET, canary=10, watch_s=30)
WATCHED = CANARY.model_copy(update={"share": 10})


def counts(answered: int, *, failed: int = 0, missed: int = 0, refused: int = 0, seconds: float = 0.01) -> Counts:
    return Counts(answered, answered, failed, refused, missed, {bucket_of(seconds): answered})


def test_nothing_moves_before_every_replica_is_ready() -> None:
    assert next_step(ALL_AT_ONCE, Seen(ready=False, coming_s=5, waits="no room")) == Wait("it comes up: no room")


def test_all_at_once_is_done_when_every_replica_is_ready() -> None:
    assert isinstance(next_step(ALL_AT_ONCE, Seen(ready=True, coming_s=5)), Finish)


def test_a_canary_gets_its_share_first() -> None:
    assert next_step(CANARY, Seen(ready=True, coming_s=5)) == Share(10, "every replica of it is ready")


def test_what_does_not_come_up_is_taken_back_with_the_reason() -> None:
    late = Seen(ready=False, coming_s=61, waits="no room")
    assert next_step(ALL_AT_ONCE, late) == TakeBack("it was not ready within 60 s: no room")
    dying = Seen(ready=False, coming_s=5, deaths=3, waits="the last: ArtifactError: no GPU")
    assert next_step(CANARY, dying) == TakeBack("3 of its replicas died: the last: ArtifactError: no GPU")


def test_a_canary_is_watched_for_its_time_and_until_enough_was_seen() -> None:
    well = Seen(ready=True, coming_s=40, sharing_s=29, old=counts(900), new=counts(100))
    assert isinstance(next_step(WATCHED, well), Wait)
    assert isinstance(next_step(WATCHED, replace(well, sharing_s=31)), Finish)
    assert isinstance(next_step(WATCHED, replace(well, sharing_s=31, new=counts(20))), Wait)


def test_a_canary_that_refuses_as_the_old_one_does_is_none_the_worse() -> None:
    flooded = Seen(ready=True, coming_s=40, sharing_s=31, old=counts(500, refused=400), new=counts(50, refused=40))
    assert isinstance(next_step(WATCHED, flooded), Finish)


def test_a_canary_gets_all_requests_only_while_it_has_the_replicas_for_them() -> None:
    well = Seen(ready=False, coming_s=40, sharing_s=31, waits="no room", old=counts(900), new=counts(100))
    assert next_step(WATCHED, well) == Wait("it is watched at 10 % until every replica of it is ready: no room")
    late = replace(well, sharing_s=31 + WATCHED.within_s)
    assert next_step(WATCHED, late) == TakeBack(
        f"it had not every replica ready within {WATCHED.within_s:g} s: no room"
    )


@pytest.mark.parametrize(
    ("new", "told"),
    [
        (counts(97, failed=3), "3 of its 100 requests failed or missed their deadline, 3.0 %, against 0.0 %"),
        (counts(0, failed=3), "3 of its 3 requests failed"),
        (counts(60, refused=40), "it refused 40 requests, 40.0 %, against 0.0 % of the old one's"),
        (counts(90, missed=10), "10 of its 100 requests failed or missed"),
        (counts(100, seconds=0.03), "95 % of its answers take up to 29"),
    ],
)
def test_a_canary_that_fails_or_is_slow_is_taken_back_before_its_time(new: Counts, told: str) -> None:
    step = next_step(WATCHED, Seen(ready=True, coming_s=9, sharing_s=2, old=counts(900), new=new))
    assert isinstance(step, TakeBack)
    assert told in step.why


def test_failures_that_the_old_one_has_too_do_not_count_against_the_new() -> None:
    step = next_step(
        WATCHED, Seen(ready=True, coming_s=99, sharing_s=31, old=counts(900, failed=100), new=counts(90, failed=10))
    )
    assert isinstance(step, Finish)


def test_two_failures_prove_nothing_and_two_milliseconds_neither() -> None:
    few = counts(60, failed=2, seconds=0.003)
    step = next_step(WATCHED, Seen(ready=True, coming_s=99, sharing_s=5, old=counts(900, seconds=0.001), new=few))
    assert isinstance(step, Wait)
