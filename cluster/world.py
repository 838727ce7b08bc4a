"""What the controller wants and what it sees, as values. `plan` compares the two.

A *stage* of a model version has *replicas*: workers, each hosting one shard. A model's *revisions* are what was
served of it one after the other: its versions, cut and sized in some way. During a roll-out two live side by side.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import NamedTuple


class Pipeline(NamedTuple):
    """The stages of one version of a model as one revision cuts it."""

    model: str
    version: int
    revision: int = 1

    def __str__(self) -> str:
        return f"{self.model}/{self.version}" + (f" (revision {self.revision})" if self.revision > 1 else "")


@dataclass(frozen=True, slots=True, order=True)
class Stage:
    """One stage of one version of a model; stage 0 takes requests from gateways."""

    model: str
    version: int
    index: int
    revision: int = 1

    def __str__(self) -> str:
        return f"{self.model}/{self.version} stage {self.index}" + (
            f" (revision {self.revision})" if self.revision > 1 else ""
        )

    @property
    def pipeline(self) -> Pipeline:
        return Pipeline(self.model, self.version, self.revision)

    @property
    def before(self) -> "Stage":
        return replace(self, index=self.index - 1)

    @property
    def after(self) -> "Stage":
        return replace(self, index=self.index + 1)


class Phase(StrEnum):
    UNKNOWN = "unknown"
    """Found by its name after a controller's restart; it has not yet said how it is."""
    PENDING = "pending"
    """Asked of Ray; no process has answered yet."""
    STARTING = "starting"
    """Its process lives; the shard loads and warms up."""
    READY = "ready"
    DRAINING = "draining"
    """It was told to take no more, and answers what it owes."""
    DRAINED = "drained"
    """It owes nothing, or the bound on draining has passed."""
    DEAD = "dead"
    """Its process is gone, it could not start, or it has not answered within the bound."""


@dataclass(frozen=True, slots=True)
class Replica:
    """One worker as last seen.

    told: the next stage's replicas (id to host:port) as the worker last confirmed; None: not known, since it was told
      by an earlier controller.
    asked: what it was last told, confirmed or not; None: it must be told again.
    leaving: chosen to go; it is in no table that is made from now on.
    why: for DEAD, what happened.
    displaced: its node is being drained: it serves on until another has taken its place.
    seat: how well it sits (`cluster.placement.seat`); where nothing else tells replicas apart, the lowest goes first.
    """

    id: str
    stage: Stage
    phase: Phase
    address: str = ""
    told: Mapping[str, str] | None = field(default_factory=dict)
    asked: Mapping[str, str] | None = field(default_factory=dict)
    leaving: bool = False
    queued_rows: int = 0
    why: str = ""
    displaced: bool = False
    seat: tuple[int, int] = (0, 0)

    @property
    def takes_work(self) -> bool:
        return self.phase is Phase.READY and not self.leaving

    @property
    def coming(self) -> bool:
        return self.phase in (Phase.PENDING, Phase.STARTING) and not (self.leaving or self.displaced)

    @property
    def living(self) -> bool:
        return self.phase is not Phase.DEAD


@dataclass(frozen=True, slots=True)
class Route:
    """What gateways know of one version of a model.

    replicas: those of stage 0 that take requests, id to host:port.
    reason: why the pipeline does not answer; empty where every stage has a ready replica.
    weight: its share of the requests among the model's revisions, percent.
    """

    model: str
    version: int
    replicas: Mapping[str, str]
    reason: str = ""
    revision: int = 1
    weight: int = 100

    @property
    def pipeline(self) -> Pipeline:
        return Pipeline(self.model, self.version, self.revision)


@dataclass(frozen=True, slots=True)
class World:
    """All that `plan` looks at.

    desired: replicas wanted of each stage of every version that is served; 0 while stopping.
    held_back: stages that may start nothing now, since they crash again and again, and why.
    notes: why a stage's replicas are not ready, where more is known than that.
    published: what gateways were last told; None: nothing since this controller started, so they may hold any.
    confirmed: every gateway has put in force what was published, as far as they can be waited for.
    weights: share of the requests, percent, of each (model, revision); 100 where none is given.
    stopping: nothing is wanted any more.
    """

    desired: Mapping[Stage, int]
    replicas: tuple[Replica, ...] = ()
    held_back: Mapping[Stage, str] = field(default_factory=dict)
    notes: Mapping[Stage, str] = field(default_factory=dict)
    published: tuple[Route, ...] | None = None
    confirmed: bool = True
    weights: Mapping[tuple[str, int], int] = field(default_factory=dict)
    stopping: bool = False

    def of(self, stage: Stage) -> list[Replica]:
        return [replica for replica in self.replicas if replica.stage == stage]
