import asyncio

from gateway.pulse import Vigil, beat_forever
from gateway.statistics import Statistics
from gateway.supervisor import statistics_file


def test_a_process_stands_still_once_it_has_not_beaten_for_so_long() -> None:
    vigil = Vigil(3.0)
    assert [vigil.stands_still(beats) for beats in (7, 7, 7, 8, 8, 8, 8)] == [False] * 6 + [True]


def test_one_that_is_slow_and_beats_now_and_then_does_not() -> None:
    vigil = Vigil(3.0)
    assert not any(vigil.stands_still(look // 3) for look in range(100))


def test_a_single_look_never_tells() -> None:
    vigil = Vigil(0.0)
    assert [vigil.stands_still(7) for _ in range(3)] == [False, False, True]


async def test_beats_are_seen_by_who_shares_the_memory_and_go_on_from_those_of_the_process_before() -> None:
    with statistics_file(2) as file:
        seen = Statistics.shared(file, 2, 0)
        for before in (0, 1):
            writer, began = Statistics.shared(file, 2, 1), asyncio.Event()

            def beat(writer: Statistics = writer, began: asyncio.Event = began) -> None:
                writer.beat()
                began.set()

            beating = asyncio.create_task(beat_forever(beat))
            await began.wait()
            beating.cancel()
            assert (seen.beats(0), seen.beats(1)) == (0, before + 1)
        seen.counters("m", "1").failed(7)
        assert (seen.totals("m", "1").fail, seen.beats(1)) == (1, 2), "beats are no counters, nor are those beats"
