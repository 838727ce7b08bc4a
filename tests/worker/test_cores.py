"""Cores are those that a process may use."""

import os
import subprocess
import sys

from worker.cores import cores


def test_a_process_that_is_bound_to_one_core_counts_one() -> None:
    command = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); from worker.cores import cores"
    done = subprocess.run(
        [sys.executable, "-c", command + "; print(cores())"], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "1"
    assert cores() == len(os.sched_getaffinity(0))
