"""`make chaos`: steady load, one harm after the other, and what became of every request."""

import argparse
import contextlib
import json
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from tests.chaos import hosts, links, nodes, processes
from tests.chaos.case import Fault, Outcome, Refused, Sizes, run_case
from tests.chaos.cluster import Cluster, one_machine

Bring = Callable[[Path], "contextlib.AbstractContextManager[Cluster]"]


@dataclass(frozen=True)
class Case:
    """retry: clients send a call again whose connection ended, as a gateway process takes its connections with it."""

    name: str
    fault: Fault
    retry: bool = False


GROUPS: dict[Bring, list[Case]] = {
    one_machine: [
        *(
            Case(f"{word}_{place}", processes.signal_a_worker(stage, number))
            for word, number in (("kill", signal.SIGKILL), ("freeze", signal.SIGSTOP))
            for stage, place in enumerate(("first", "middle", "last"))
        ),
        Case("kill_two", processes.kill_two_workers),
        Case("kill_controller", processes.kill_the_controller),
        Case("kill_gateway", processes.kill_a_gateway_process, retry=True),
        Case("slow_first", processes.slow_a_worker(0)),
        Case("slow_middle", processes.slow_a_worker(1)),
        Case("broken_first", processes.break_a_worker),
        Case("scale_down_and_up", processes.scale_down_and_up),
        Case("roll_out_and_back", processes.roll_out_and_back),
    ],
    nodes.three_nodes: [Case("drain_node", nodes.drain_a_node), Case("kill_node", nodes.kill_a_node)],
    hosts.two_hosts: [
        Case("link_blip", links.link_blip),
        Case("slow_link", links.slow_link),
        Case("shut_down_host", links.shut_down_host),
        Case("partition", links.partition),
        Case("full_disk", links.full_disk),  # a host that could not load comes last for new replicas afterwards
    ],
}


def run_group(bring: Bring, cases: list[Case], sizes: Sizes, console: Console, outcomes: list[Outcome]) -> None:
    """Adds to `outcomes`. A cluster that does not recover ends its group: the cases after it would tell nothing."""
    with (
        tempfile.TemporaryDirectory(prefix="chaos-") as folder,
        last_words(Path(folder), console),
        bring(Path(folder)) as one,
    ):
        for case in cases:
            outcome = run_case(case.name, case.fault, one, sizes, retry=case.retry)
            outcomes.append(outcome)
            console.file.flush()
            console.print(
                f"{outcome.case}: {outcome.sent} sent, {outcome.lost} lost, worst {outcome.worst_ms:.0f} ms, "
                f"whole after {outcome.recovered_s:g} s"
            )
            for problem in outcome.problems:
                console.print(f"  {problem}", markup=False)


@contextlib.contextmanager
def last_words(folder: Path, console: Console) -> Iterator[None]:
    """Where something fails, shows the end of every log below `folder`."""
    try:
        yield
    except BaseException:
        for log in sorted(folder.glob("**/*.log")):
            console.print(
                f"--- {log.name}", *log.read_text(errors="replace").splitlines()[-15:], sep="\n", markup=False
            )
        raise


def table(outcomes: list[Outcome]) -> Table:
    shown = Table("case", "sent", "lost", "duplicated", "p99 ms", "worst ms", "whole after s", "")
    for one in outcomes:
        shown.add_row(
            *(one.case, str(one.sent), str(one.lost), str(one.duplicated), f"{one.p99_ms:.0f}"),
            *(f"{one.worst_ms:.0f}", f"{one.recovered_s:.1f}", one.note),
        )
    return shown


def main() -> int:
    names = [case.name for cases in GROUPS.values() for case in cases]
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("--cases", default="", metavar="A,B", help=f"of {', '.join(names)} (default: all)")
    parser.add_argument("--json", action="store_true", help="print one last line of JSON with a list of the cases")
    given = parser.parse_args()
    wanted = given.cases.split(",") if given.cases else names
    if unknown := set(wanted) - set(names):
        parser.error(f"no such case: {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    console = Console(stderr=True)
    outcomes: list[Outcome] = []
    broken_off = False
    for bring, cases in GROUPS.items():
        if chosen := [case for case in cases if case.name in wanted]:
            try:
                run_group(bring, chosen, Sizes(), console, outcomes)
            except pytest.fail.Exception as failure:
                broken_off = True
                left = [case.name for case in chosen if case.name not in {outcome.case for outcome in outcomes}]
                console.print(f"broken off, not run: {', '.join(left)}: {failure}", markup=False)
            except Refused as refusal:
                console.print(f"not run: {', '.join(case.name for case in chosen)}: {refusal}", markup=False)
    Console(width=120).print(table(outcomes))
    if given.json:
        print(json.dumps([outcome.as_json() for outcome in outcomes]))
    return 0 if outcomes and not broken_off and all(outcome.passed for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
