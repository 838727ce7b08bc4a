"""One case: a fault under steady load, and what became of every request."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from tests.chaos import seen
from tests.chaos.cluster import Cluster
from tests.chaos.load import LoadProcess
from tests.shardline.serve_process import wait_for

Recovered = Callable[[], bool]
Fault = Callable[[Cluster], Recovered]
"""Does the harm, and returns what tells whether the cluster is at full strength again."""

WITHIN_S = 300.0
DISTURBED_S = 5.0
"""Where the load itself did not run for so long, its requests' deadlines tell nothing: the case is run again."""
RUNS = 3


class Refused(Exception):
    """This machine does not let a group's cluster be made, or a case's harm be done; the message says why."""


@dataclass(frozen=True)
class Sizes:
    """requests: at least so many in a case. before, after: of them, answered before the harm, sent after it healed.

    deadline_s: of each.
    """

    rate: float = 150.0
    requests: int = 5000
    before: int = 500
    after: int = 500
    deadline_s: float = 20.0


@dataclass
class Outcome:
    """`recovered_s`: from the harm to full strength. `note`: what else the case shows.

    lost: requests without a right answer inside their deadline.
    duplicated: answers that came to a client and belonged to a request that had been answered. gRPC gives a unary call
      one answer, so this is what it looks like where a late second answer gets to another request's call.
    begun_twice: requests that workers of the first stage began more than once, since the first who did was lost.
    computed_twice: those of which the first stage had the whole answer more than once; the gateway passed on one.
      What later stages compute again for a first stage that lives is not in these two.
    clients_retry: clients sent a call again whose connection ended.
    """

    case: str
    sent: int
    lost: int
    duplicated: int
    begun_twice: int
    computed_twice: int
    clients_retry: bool
    worst_ms: float
    p99_ms: float
    recovered_s: float
    problems: list[str] = field(default_factory=list)
    note: str = ""

    @property
    def passed(self) -> bool:
        return not self.lost and not self.duplicated

    def as_json(self) -> dict[str, Any]:
        """Of a case in which nothing was answered no latency is known: null."""
        known = {key: value for key, value in asdict(self).items() if key != "problems"}
        silent = dict.fromkeys(("worst_ms", "p99_ms")) if self.lost >= self.sent else {}
        return {**known, **silent, "not_run": None}


@dataclass(frozen=True)
class NotRun:
    """A case that was not tried, and why: this machine refused it, or its group was broken off before its end."""

    case: str
    why: str
    refused: bool = True

    def as_json(self) -> dict[str, Any]:
        """With the keys of an `Outcome`, all null."""
        unknown = dict.fromkeys(one.name for one in fields(Outcome) if one.name != "problems")
        return {**unknown, "case": self.case, "not_run": self.why}


def run_case(name: str, fault: Fault, cluster: Cluster, sizes: Sizes, *, retry: bool = False) -> Outcome:
    """Raises where the cluster does not recover within `WITHIN_S`, or the machine leaves the load no peace; Refused."""
    for _ in range(RUNS):
        outcome = _run_once(name, fault, cluster, sizes, retry=retry)
        if outcome is not None:
            return outcome
    raise RuntimeError(f"{name}: the load stood still for over {DISTURBED_S:g} s in each of {RUNS} runs")


def _run_once(name: str, fault: Fault, cluster: Cluster, sizes: Sizes, *, retry: bool) -> Outcome | None:
    """None: the load itself was disturbed."""
    wait_for("the cluster is whole before the harm", cluster.is_whole)
    before = seen.sizes(cluster.seen)
    with LoadProcess(cluster.url, rate=sizes.rate, retry=retry, deadline_s=sizes.deadline_s) as load:
        load.wait_for_more(sizes.before)
        began = time.monotonic()
        recovered = fault(cluster)
        wait_for(f"{name}: full strength again", recovered, WITHIN_S)
        recovered_s = time.monotonic() - began
        load.wait_for_more(sizes.after)
        load.wait_until_sent(sizes.requests)
    counts, note = load.counts, cluster.note
    cluster.note = ""
    if counts.stood_still_s > DISTURBED_S:
        return None
    return Outcome(
        name,
        counts.sent,
        counts.sent - counts.answered,
        counts.duplicated,
        seen.more_than_once(cluster.seen, seen.BEGUN, before),
        seen.more_than_once(cluster.seen, seen.COMPUTED, before),
        retry,
        counts.worst_ms,
        counts.p99_ms,
        round(recovered_s, 2),
        counts.problems,
        note,
    )
