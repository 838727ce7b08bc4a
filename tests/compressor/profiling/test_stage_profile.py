from collections.abc import Callable

from compressor.profiling.stage_profile import LEAST_ROUNDS, MOST_ROUNDS, Run, Size, in_turns


def recorded(log: list[Size]) -> dict[Size, Run]:
    """Runs that take as many seconds as they have cells, and write down that they ran."""

    def run_of(size: Size) -> Callable[[], float]:
        def run() -> float:
            log.append(size)
            return float(size[0] * size[1])

        return run

    return {size: run_of(size) for size in [(1, 16), (1, 64), (8, 16), (8, 64)]}


def test_every_size_runs_once_a_round_and_rounds_differ_in_their_order() -> None:
    log: list[Size] = []
    runs = recorded(log)
    taken = in_turns(runs, enough_s=0.0)
    assert taken == {size: [float(size[0] * size[1])] * LEAST_ROUNDS for size in runs}
    rounds = [log[first : first + len(runs)] for first in range(0, len(log), len(runs))]
    assert all(sorted(one) == sorted(runs) for one in rounds)
    assert len({tuple(one) for one in rounds}) > 1


def test_quick_runs_are_not_repeated_without_end() -> None:
    log: list[Size] = []
    in_turns(recorded(log), enough_s=60.0)
    assert len(log) == 4 * MOST_ROUNDS
