"""Some cases of `make chaos`, smaller: with every change it is tried that nothing is lost."""

import signal
from collections.abc import Iterator

import pytest

from tests.chaos.case import Fault, Sizes, run_case
from tests.chaos.cluster import Cluster, one_machine
from tests.chaos.processes import kill_the_controller, signal_a_worker
from tests.chaos.seen import recorded

SIZES = Sizes(rate=40.0, requests=320, before=40, after=40, deadline_s=60.0)


@pytest.fixture(scope="module")
def harmed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("chaos")
    with recorded(folder / "seen"), one_machine(folder) as one:
        yield one


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("kill_middle", signal_a_worker(1, signal.SIGKILL)),
        pytest.param("freeze_first", signal_a_worker(0, signal.SIGSTOP), marks=pytest.mark.slow),
        ("kill_controller", kill_the_controller),
    ],
    ids=["kill_middle", "freeze_first", "kill_controller"],
)
def test_under_load_nothing_is_lost_and_nothing_is_answered_twice(harmed: Cluster, name: str, fault: Fault) -> None:
    outcome = run_case(name, fault, harmed, SIZES)
    assert outcome.sent >= SIZES.requests
    assert (outcome.lost, outcome.duplicated) == (0, 0), outcome.problems
