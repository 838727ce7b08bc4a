"""Which model versions there are, what they take, and the link to the workers of each.

During a roll-out a version may have two pipelines (*lanes*, told apart by their revision), which share its requests.
A new table changes what differs and leaves the rest alone. What is in flight on a version that leaves, or whose link
must be opened anew, is answered first; it has a deadline.
"""

import asyncio
import random
from dataclasses import dataclass, field, replace
from itertools import chain

from gateway.admission import Admission
from gateway.contract import Contract
from gateway.errors import quoted
from gateway.route_table import Route, read_route
from gateway.statistics import Counters, Statistics
from gateway.tally import Tally
from protos import control_pb2 as pb
from worker.errors import InvalidRequest, NotFound, Unavailable
from worker.link import Link, LinkLimits

LinkKey = tuple[str, int, float, float]
LaneKey = tuple[str, str, int]


@dataclass(slots=True, eq=False)
class Served:
    """One lane of a model version as this process serves it."""

    route: Route
    link: Link
    link_key: LinkKey
    admission: Admission
    counters: Counters
    tally: Tally
    contract: Contract = field(init=False)

    def __post_init__(self) -> None:
        self.contract = Contract(self.route.model, self.route.signature, self.route.limits.max_batch_rows)


class Routes:
    """The table in force. Belongs to the event loop it is used on; owns the links."""

    def __init__(self, statistics: Statistics) -> None:
        self._statistics = statistics
        self._served: dict[LaneKey, Served] = {}
        self._by_request: dict[tuple[str, str], tuple[Served, ...]] = {}
        self._described: dict[tuple[str, str], Served] = {}
        self._versions: dict[str, list[Served]] = {}
        self._leaving: dict[asyncio.Task[None], Served] = {}
        self._token = self._store = ""
        self._epochs: dict[str, int] = {}
        """The newest of each store that the token's controllers had."""
        self.generation = 0
        self.report_now = asyncio.Event()
        """Set when the controller should hear of something at once."""

    def find(self, model: str, version: str) -> Served:
        """What serves a request; an empty version is the newest ready one.

        A model without replicas that would get one when asked is returned too: its link waits for it. Raises
        `NotFound`, `InvalidRequest` where no model is named, `Unavailable` where the version is not ready.
        """
        lanes = self._by_request.get((model, version))
        if lanes is not None:
            return lanes[0] if len(lanes) == 1 else _drawn(lanes)
        described = self.describe(model, version)
        if described.route.wakes:
            self.report_now.set()
            return described
        reason = described.route.reason or "its workers are starting"
        raise Unavailable(f"{described.route.label} is not ready: {reason}")

    def describe(self, model: str, version: str) -> Served:
        """Like `find`, ready or not; an empty version is the newest ready one, else the newest."""
        lanes = self._by_request.get((model, version))
        served = lanes[0] if lanes is not None else self._described.get((model, version))
        if served is not None:
            return served
        if not model:
            raise InvalidRequest("the request names no model; set model_name")
        versions = self._versions.get(model)
        if versions is None:
            raise NotFound(f"Request for unknown model: {quoted(model)} is not found")
        if not version:
            return versions[-1]
        known = ", ".join(other.route.version for other in versions)
        raise NotFound(
            f"Request for unknown model: {quoted(model)} has no version {quoted(version)}; its versions are {known}"
        )

    def versions(self, model: str) -> list[Served]:
        """Oldest first. Raises `NotFound`."""
        self.describe(model, "")
        return list(self._versions[model])

    def all(self) -> list[Served]:
        """By name, then oldest first."""
        return [served for model in sorted(self._versions) for served in self._versions[model]]

    def ready(self, model: str = "") -> bool | None:
        """Whether the model, or any model, would take a request that names no version; None: there is no such model.

        One that sleeps would: a probe that said no would keep away the request that wakes it.
        """
        if not model:
            return any(map(self.ready, self._versions))
        return self.describe(model, "").route.accepts if model in self._versions else None

    @property
    def inflight(self) -> int:
        """Requests that this process holds, those of versions that left the table among them."""
        return sum(served.admission.inflight for served in chain(self._served.values(), self._leaving.values()))

    def apply(self, table: pb.RouteTable, token: str) -> None:
        """Puts `table` in force; `token` is what the workers ask for.

        Raises `InvalidRequest` and changes nothing where the table makes no sense.
        """
        epochs = self._epochs if token == self._token else {}
        store = table.store or self._store
        if table.epoch < epochs.get(store, 0):
            raise InvalidRequest(f"it comes from controller {table.epoch}, and {epochs[store]} has taken over")
        read = [read_route(route, stopping=table.stopping) for route in table.models]
        routes = {(route.model, route.version, route.revision): route for route in read}
        if len(routes) != len(table.models):
            raise InvalidRequest("the route table names a model version twice")
        served = {key: self._serve(key, route, token) for key, route in routes.items()}
        for key, old in self._served.items():
            if key not in served:
                self._retire(old)
        self._served = served
        self._token, self._store, self._epochs = token, store, {**epochs, store: table.epoch}
        self.generation = table.generation
        self._index()
        self.report_now.set()

    def report(self, gateway: str) -> pb.GatewayReport:
        """What the controller is told; `gateway` names this process."""
        return pb.GatewayReport(
            gateway=gateway,
            generation=self.generation,
            lanes=[
                served.tally.report(*key, ready=served.route.ready and bool(served.route.replicas))
                for key, served in self._served.items()
            ],
        )

    def _index(self) -> None:
        """Which lanes may answer which request, the one that takes most of them first."""
        self._versions, self._by_request, self._described = {}, {}, {}
        ready: dict[tuple[str, str], list[Served]] = {}
        newest: dict[tuple[str, int], Served] = {}
        lanes = sorted(
            self._served.values(),
            key=lambda one: (int(one.route.version), -one.route.weight, -one.route.revision),
        )
        for one in lanes:
            route = one.route
            if (route.model, route.version) not in self._described:
                self._described[route.model, route.version] = one
                self._versions.setdefault(route.model, []).append(one)
            if route.ready:
                ready.setdefault((route.model, route.version), []).append(one)
                newest[route.model, route.revision] = one
        for one in newest.values():
            ready.setdefault((one.route.model, ""), []).append(one)
        for key, candidates in ready.items():
            heaviest_first = sorted(candidates, key=lambda one: (-one.route.weight, -one.route.revision))
            weighty = [one for one in heaviest_first if one.route.weight]
            self._by_request[key] = tuple(weighty or heaviest_first[:1])

    async def close(self) -> None:
        """Closes every link; what is still in flight fails with `Unavailable`."""
        leaving = list(self._leaving)
        for task in leaving:
            task.cancel()
        links = [served.link for served in self._served.values()]
        self._served, self._by_request, self._described, self._versions = {}, {}, {}, {}
        await asyncio.gather(*(link.close() for link in links), *leaving, return_exceptions=True)

    def _serve(self, key: LaneKey, route: Route, token: str) -> Served:
        """The link and the counts stay, unless the link must be another one."""
        limits = route.limits
        link_key = (token, limits.max_inflight_per_replica, limits.start_wait_s, limits.hedge_share)
        old = self._served.get(key)
        if old is not None and old.link_key == link_key:
            old.admission.limit = limits.max_inflight
            served = Served(route, old.link, link_key, old.admission, old.counters, old.tally)
        else:
            if old is not None:
                self._retire(old)
            bounds = LinkLimits(max_inflight=limits.max_inflight_per_replica, hedge_share=limits.hedge_share)
            link = Link(token, replace(bounds, patience_s=max(bounds.patience_s, limits.start_wait_s)))
            counters = self._statistics.counters(route.model, route.version)
            served = Served(route, link, link_key, Admission(route.label, limits.max_inflight), counters, Tally())
        served.admission.predicts = not limits.plain_queue
        served.link.route(route.replicas)
        return served

    def _retire(self, served: Served) -> None:
        task = asyncio.create_task(_close_when_idle(served))
        self._leaving[task] = served
        task.add_done_callback(self._leaving.pop)


async def _close_when_idle(served: Served) -> None:
    try:
        await served.admission.idle()
    finally:
        await served.link.close()


def _drawn(lanes: tuple[Served, ...]) -> Served:
    """One of them, by chance: by how much each should get."""
    return random.choices(lanes, [lane.route.weight for lane in lanes])[0]
