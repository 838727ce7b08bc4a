import os
import subprocess
import sys

from gateway.metadata import model_statistics
from gateway.route_table import read_route
from gateway.statistics import FIELDS, RECORDS, Counters, Statistics, Totals, region_bytes
from gateway.supervisor import statistics_file
from tests.gateway.backend import model


def count(counters: Counters, rows: int = 2, batch_rows: int = 8) -> None:
    counters.succeeded(
        total_ns=100, queue_ns=10, compute_ns=50, input_ns=3, output_ns=4, rows=rows, batch_rows=batch_rows
    )


def test_a_version_that_was_never_called_has_nothing() -> None:
    assert Statistics.alone().totals("m", "1") == Totals()


def test_what_is_counted_is_told() -> None:
    statistics = Statistics.alone()
    counters = statistics.counters("m", "1")
    for _ in range(2):
        count(counters)
    counters.failed(7)
    totals = statistics.totals("m", "1")
    assert (totals.success, totals.success_ns, totals.fail, totals.fail_ns) == (2, 200, 1, 7)
    assert (totals.queue_ns, totals.compute_ns, totals.input_ns, totals.output_ns) == (20, 100, 6, 8)
    assert (totals.rows, totals.microbatches) == (4, 500_000)
    assert totals.last_ms > 1_600_000_000_000
    assert statistics.totals("m", "2") == Totals()


def test_a_batch_is_counted_once_however_many_requests_share_it() -> None:
    statistics = Statistics.alone()
    counters = statistics.counters("echo", "1")
    for rows in (3, 3, 2):
        count(counters, rows=rows, batch_rows=8)
    told = model_statistics(read_route(model()), statistics.totals("echo", "1"))
    assert (told.inference_count, told.execution_count) == (8, 1)


def test_a_worker_that_tells_no_batch_size_counts_as_a_batch_of_its_own() -> None:
    statistics = Statistics.alone()
    count(statistics.counters("m", "1"), rows=4, batch_rows=0)
    assert statistics.totals("m", "1").microbatches == 1_000_000


ANOTHER_PROCESS = """
import sys
from gateway.statistics import Statistics
counters = Statistics.shared(int(sys.argv[1]), 2, 1).counters("m", "1")
counters.succeeded(total_ns=100, queue_ns=10, compute_ns=50, input_ns=3, output_ns=4, rows=2, batch_rows=8)
"""


def test_the_processes_of_a_gateway_count_together() -> None:
    with statistics_file(2) as file:
        mine = Statistics.shared(file, 2, 0)
        count(mine.counters("other", "1"))
        count(mine.counters("m", "1"))
        subprocess.run([sys.executable, "-c", ANOTHER_PROCESS, str(file)], pass_fds=(file,), check=True, timeout=60)
        totals = mine.totals("m", "1")
        assert (totals.success, totals.rows) == (2, 4)
        assert os.fstat(file).st_size == region_bytes(2)


def test_a_process_that_is_started_again_goes_on_counting() -> None:
    with statistics_file(1) as file:
        count(Statistics.shared(file, 1, 0).counters("m", "1"))
        again = Statistics.shared(file, 1, 0)
        count(again.counters("m", "1"))
        assert again.totals("m", "1").success == 2


def test_more_versions_than_there_are_records_are_served_all_the_same() -> None:
    statistics = Statistics.alone()
    for version in range(RECORDS):
        statistics.counters("m", str(version))
    count(statistics.counters("m", "one too many"))
    assert statistics.totals("m", "one too many") == Totals()
    count(statistics.counters("m", str(RECORDS - 1)))
    assert statistics.totals("m", str(RECORDS - 1)).success == 1


def test_totals_name_what_a_record_holds() -> None:
    assert tuple(Totals.__dataclass_fields__) == FIELDS
