"""`make chaos`: steady load, one harm after the other, and what became of every request.

Exit status: 0 where every case that was asked for ran and no request was lost or answered twice; 1 where one was, or a
cluster did not recover; 2: a wrong command line; 3 where nothing was lost and this machine refused some cases.
With --json the last line is a list of the cases, all with the same keys: what is not known of a case is null; `not_run`
says why it was not run, and is null where it was.
"""

import argparse
import contextlib
import json
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest
from rich.console import Console
from rich.table import Table

from tests.chaos import hosts, links, nodes, processes
from tests.chaos.case import Fault, NotRun, Outcome, Refused, Sizes, run_case
from tests.chaos.cluster import Cluster, one_machine
from tests.chaos.seen import recorded

PASSED: Final = 0
FAILED: Final = 1
REFUSED: Final = 3

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
        Case("kill_gateway", processes.signal_a_gateway_process(signal.SIGKILL), retry=True),
        Case("freeze_gateway", processes.signal_a_gateway_process(signal.SIGSTOP), retry=True),
        Case("slow_first", processes.slow_a_worker(0)),
        Case("slow_middle", processes.slow_a_worker(1)),
        Case("broken_first", processes.break_a_worker),
        Case("scale_down_and_up", processes.scale_down_and_up),
        Case("kill_while_draining", processes.kill_while_draining),
        Case("roll_out_and_back", processes.roll_out_and_back),
        Case("kill_new_in_roll_out", processes.kill_during_a_roll_out(0, new=True)),
        Case("kill_old_in_roll_out", processes.kill_during_a_roll_out(1, new=False)),
    ],
    nodes.three_nodes: [
        Case("drain_node", nodes.drain_a_node),
        Case("kill_while_node_drains", nodes.kill_while_a_node_drains),
        Case("kill_node", nodes.kill_a_node),
    ],
    hosts.two_hosts: [
        Case("link_blip", links.link_blip),
        Case("slow_link", links.slow_link),
        Case("shut_down_host", links.shut_down_host),
        Case("partition", links.partition),
        Case("full_disk", links.full_disk),  # a host that could not load comes last for new replicas afterwards
    ],
}


@dataclass
class Report:
    outcomes: list[Outcome] = field(default_factory=list)
    not_run: list[NotRun] = field(default_factory=list)

    @property
    def all(self) -> list[Outcome | NotRun]:
        return [*self.outcomes, *self.not_run]

    def leave_out(self, cases: list[Case], why: str, *, refused: bool = True) -> None:
        """Of `cases`, those that nothing is said of yet. refused: by this machine; else their cluster failed."""
        known = {one.case for one in self.all}
        self.not_run += [NotRun(case.name, why, refused) for case in cases if case.name not in known]

    @property
    def status(self) -> int:
        """The exit status. What failed counts more than what was refused; where nothing was tried, nothing passed."""
        broken_off = any(not one.refused for one in self.not_run)
        if not self.all or broken_off or not all(outcome.passed for outcome in self.outcomes):
            return FAILED
        return REFUSED if self.not_run else PASSED

    def as_json(self) -> list[dict[str, Any]]:
        return [one.as_json() for one in self.all]

    def lines(self) -> list[str]:
        """One for each reason why something was not run."""
        whys = dict.fromkeys(one.why for one in self.not_run)
        return [f"not run: {', '.join(one.case for one in self.not_run if one.why == why)}: {why}" for why in whys]


def run_group(bring: Bring, cases: list[Case], sizes: Sizes, console: Console, report: Report) -> None:
    """Adds to `report`. A cluster that does not recover ends its group: the cases after it would tell nothing."""
    with (
        tempfile.TemporaryDirectory(prefix="chaos-") as folder,
        last_words(Path(folder), console),
        recorded(Path(folder) / "seen"),
        bring(Path(folder)) as one,
    ):
        for case in cases:
            try:
                outcome = run_case(case.name, case.fault, one, sizes, retry=case.retry)
            except Refused as refusal:
                report.leave_out([case], str(refusal))
                continue
            report.outcomes.append(outcome)
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
    except Refused:
        raise
    except BaseException:
        for log in sorted(folder.glob("**/*.log")):
            console.print(
                f"--- {log.name}", *log.read_text(errors="replace").splitlines()[-15:], sep="\n", markup=False
            )
        raise


def table(outcomes: list[Outcome]) -> Table:
    shown = Table("case", "sent", "lost", "dupl.", "begun/computed twice", "p99 ms", "worst ms", "whole after s", "")
    for one in outcomes:
        retry = "clients retry; " if one.clients_retry else ""
        shown.add_row(
            *(one.case, str(one.sent), str(one.lost), str(one.duplicated), f"{one.begun_twice}/{one.computed_twice}"),
            *(f"{one.p99_ms:.0f}", f"{one.worst_ms:.0f}", f"{one.recovered_s:.1f}", f"{retry}{one.note}".strip("; ")),
        )
    return shown


def main() -> int:
    names = [case.name for cases in GROUPS.values() for case in cases]
    parser = argparse.ArgumentParser(
        prog="make chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", default="", metavar="A,B", help=f"of {', '.join(names)} (default: all)")
    parser.add_argument("--json", action="store_true", help="print one last line of JSON with a list of the cases")
    given = parser.parse_args()
    wanted = given.cases.split(",") if given.cases else names
    if unknown := set(wanted) - set(names):
        parser.error(f"no such case: {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    console = Console(stderr=True)
    report = Report()
    for bring, cases in GROUPS.items():
        if chosen := [case for case in cases if case.name in wanted]:
            try:
                run_group(bring, chosen, Sizes(), console, report)
            except Refused as refusal:
                report.leave_out(chosen, str(refusal))
            except (pytest.fail.Exception, Exception) as failure:  # noqa: BLE001 - the other groups still tell something
                console.print(traceback.format_exc(), markup=False, highlight=False)
                report.leave_out(chosen, f"broken off: {failure!r:.300}", refused=False)
    shown = Console(width=140)
    shown.print(table(report.outcomes))
    for line in report.lines():
        shown.print(line, markup=False, highlight=False, soft_wrap=True)
    if given.json:
        print(json.dumps(report.as_json()))
    return report.status


if __name__ == "__main__":
    sys.exit(main())
