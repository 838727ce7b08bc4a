"""Which model versions there are, what they take, and the link to the workers of each.

A new table changes what differs and leaves the rest alone. What is in flight on a version that leaves, or whose link
must be opened anew, is answered first; it has a deadline.
"""

import asyncio
from itertools import chain

from gateway.admission import Admission
from gateway.contract import Contract
from gateway.errors import quoted
from gateway.route_table import Route, read_route
from gateway.statistics import Counters, Statistics
from protos import control_pb2 as pb
from worker.errors import InvalidRequest, NotFound, Unavailable
from worker.link import Link, LinkLimits


class Served:
    """One model version as this process serves it."""

    __slots__ = ("admission", "contract", "counters", "link", "link_key", "route")

    def __init__(
        self, route: Route, link: Link, link_key: tuple[str, int], admission: Admission, counters: Counters
    ) -> None:
        self.route = route
        self.link = link
        self.link_key = link_key
        self.admission = admission
        self.counters = counters
        self.contract = Contract(route.model, route.signature, route.limits.max_batch_rows)


class Routes:
    """The table in force. Belongs to the event loop it is used on; owns the links."""

    def __init__(self, statistics: Statistics) -> None:
        self._statistics = statistics
        self._served: dict[tuple[str, str], Served] = {}
        self._by_request: dict[tuple[str, str], Served] = {}
        self._versions: dict[str, list[Served]] = {}
        self._leaving: dict[asyncio.Task[None], Served] = {}

    def find(self, model: str, version: str) -> Served:
        """What serves a request; an empty version is the newest ready one.

        Raises `NotFound`, `InvalidRequest` where no model is named, `Unavailable` where the version is not ready.
        """
        served = self._by_request.get((model, version))
        if served is not None:
            return served
        described = self.describe(model, version)
        reason = described.route.reason or "its workers are starting"
        raise Unavailable(f"{described.route.label} is not ready: {reason}")

    def describe(self, model: str, version: str) -> Served:
        """Like `find`, ready or not; an empty version is the newest ready one, else the newest."""
        served = self._by_request.get((model, version)) or self._served.get((model, version))
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
        """Whether any version of the model, or of any model, can be served; None where there is no such model."""
        if not model:
            return any(served.route.ready for served in self._served.values())
        return (model, "") in self._by_request if model in self._versions else None

    @property
    def inflight(self) -> int:
        """Requests that this process holds, those of versions that left the table among them."""
        return sum(served.admission.inflight for served in chain(self._served.values(), self._leaving.values()))

    def apply(self, table: pb.RouteTable, token: str) -> None:
        """Puts `table` in force; `token` is what the workers ask for.

        Raises `InvalidRequest` and changes nothing where the table makes no sense.
        """
        routes = {(route.model, route.version): route for route in map(read_route, table.models)}
        if len(routes) != len(table.models):
            raise InvalidRequest("the route table names a model version twice")
        served = {key: self._serve(route, token) for key, route in routes.items()}
        for key, old in self._served.items():
            if key not in served:
                self._retire(old)
        self._served = served
        self._versions = {}
        self._by_request = {}
        for one in sorted(served.values(), key=lambda one: int(one.route.version)):
            self._versions.setdefault(one.route.model, []).append(one)
            if one.route.ready:
                self._by_request[one.route.model, one.route.version] = one
                self._by_request[one.route.model, ""] = one

    async def close(self) -> None:
        """Closes every link; what is still in flight fails with `Unavailable`."""
        leaving = list(self._leaving)
        for task in leaving:
            task.cancel()
        links = [served.link for served in self._served.values()]
        self._served, self._by_request, self._versions = {}, {}, {}
        await asyncio.gather(*(link.close() for link in links), *leaving, return_exceptions=True)

    def _serve(self, route: Route, token: str) -> Served:
        """The link and the counts stay, unless the link must be another one."""
        limits = route.limits
        link_key = (token, limits.max_inflight_per_replica)
        old = self._served.get((route.model, route.version))
        if old is not None and old.link_key == link_key:
            old.admission.limit = limits.max_inflight
            served = Served(route, old.link, link_key, old.admission, old.counters)
        else:
            if old is not None:
                self._retire(old)
            link = Link(token, LinkLimits(max_inflight=limits.max_inflight_per_replica))
            counters = self._statistics.counters(route.model, route.version)
            served = Served(route, link, link_key, Admission(route.label, limits.max_inflight), counters)
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
