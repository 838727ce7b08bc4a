"""What the controller must remember beyond its own death: one file, written at once or not at all, checked when read.

The folder that holds it (the *state dir*) belongs to one `shardline serve`. It also holds the control file, with which
gateways and the command line find the controller.
"""

import errno
import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal, TextIO, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cluster.world import Stage
from worker.errors import InvalidRequest, NotFound, ShardlineError
from worker.model_yaml import ModelYaml
from worker.nouns import Signature

MAX_FILE_BYTES = 16 * 2**20
MAX_REPLICAS = 1024
KEPT_HISTORY = 20
"""Lines of each model."""

R = TypeVar("R", bound="Record")


class StateError(ShardlineError):
    """A file of the state dir cannot be used; the message names it and says how to mend it."""


class Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ServedModel(Record):
    """One revision of a model: its files as they were when it was taken. Later changes are noticed, not taken.

    replicas: for each version, the wanted replicas of each stage.
    signatures: for each version, what a client sends and gets; filled by `cluster.repository.with_signatures`.
    manifests: for each version, the sha256 of its manifest, which holds every other file's; empty: not known.
    code: `worker.handler_code.code_hash` of its handler's code; empty: it has none beside its model.yaml.
    """

    revision: int = Field(default=1, ge=1)
    config: ModelYaml
    replicas: dict[int, tuple[int, ...]]
    signatures: dict[int, Signature] = {}
    manifests: dict[int, str] = {}
    code: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")

    @property
    def bounds(self) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
        return self.config.scaled_between

    def stages_of(self, name: str) -> dict[Stage, int]:
        return {
            Stage(name, version, index, self.revision): count
            for version, counts in self.replicas.items()
            for index, count in enumerate(counts)
        }

    def scaled(self, stage: int | None, replicas: int) -> "ServedModel":
        """With `replicas` of one stage (None: of each) in every version, as far as its bounds allow."""
        least, most = self.bounds or ((1,) * self.config.stages, (MAX_REPLICAS,) * self.config.stages)
        counts = {
            version: tuple(
                max(least[index], min(most[index], replicas)) if stage in (None, index) else count
                for index, count in enumerate(old)
            )
            for version, old in self.replicas.items()
        }
        return self.model_copy(update={"replicas": counts})

    def with_counts(self, version: int, counts: tuple[int, ...]) -> "ServedModel":
        return self.model_copy(update={"replicas": {**self.replicas, version: counts}})

    @model_validator(mode="after")
    def _one_count_for_each_stage(self) -> "ServedModel":
        if any(len(counts) != self.config.stages for counts in self.replicas.values()):
            raise ValueError(f"expected {self.config.stages} replica counts for each version, got {self.replicas}")
        return self


class Rollout(Record):
    """A revision on its way to serve. share: percent of the requests that it gets now; 0 while it comes up.

    canary: its share at first, for `watch_s` seconds; 100: all at once. within_s: it is given up where it does not come
    up in so long. why: who asked for it.
    """

    target: ServedModel
    share: int = Field(default=0, ge=0, le=100)
    canary: int = Field(default=100, ge=1, le=100)
    watch_s: float = Field(default=30.0, ge=0, le=86_400)
    within_s: float = Field(default=600.0, gt=0, le=86_400)
    why: str = ""


class HistoryEntry(Record):
    """What came to serve, or was tried, and why."""

    unix_s: float
    model: str
    what: str
    why: str
    served: ServedModel


class State(Record):
    """format: of this file. generation: of the newest route table. repository: the folder of the models.

    host: where workers and the controller listen; None: each on its node's own address. port: the controller's;
    0 before it first listened.
    """

    format: Literal[1] = 1
    generation: int = Field(default=0, ge=0)
    repository: str
    host: str | None
    port: int = Field(default=0, ge=0, le=65535)
    token: str = Field(min_length=16, repr=False)
    models: dict[str, ServedModel]
    stopping: bool = False
    rollouts: dict[str, Rollout] = {}
    history: tuple[HistoryEntry, ...] = ()

    @property
    def served(self) -> dict[tuple[str, int], ServedModel]:
        """Every revision that has replicas or shall have some, by model and revision."""
        return {
            **{(name, model.revision): model for name, model in self.models.items()},
            **{(name, rollout.target.revision): rollout.target for name, rollout in self.rollouts.items()},
        }

    def known(self, name: str, revision: int) -> ServedModel | None:
        """That revision, also where it serves no longer: what is left of it may still drain. None: it is forgotten."""
        past = (
            entry.served
            for entry in reversed(self.history)
            if entry.model == name and entry.served.revision == revision
        )
        return self.served.get((name, revision)) or next(past, None)

    @property
    def weights(self) -> dict[tuple[str, int], int]:
        """Share of the requests, percent."""
        return {
            (name, revision): share
            for name, rollout in self.rollouts.items()
            for revision, share in (
                (rollout.target.revision, rollout.share),
                (self.models[name].revision, 100 - rollout.share),
            )
        }

    def next_revision(self, name: str) -> int:
        known = [revision for model, revision in self.served if model == name]
        known += [entry.served.revision for entry in self.history if entry.model == name]
        return max(known, default=0) + 1

    def remembering(self, entry: HistoryEntry) -> "State":
        """With one more line of history. The oldest lines of the same model are forgotten."""
        of_model = [known for known in self.history if known.model == entry.model][-KEPT_HISTORY + 1 :]
        kept = (known for known in self.history if known.model != entry.model or known in of_model)
        return self.model_copy(update={"history": (*kept, entry)})

    def with_served(self, name: str, served: ServedModel) -> "State":
        """With `served` in the place of the revision of its number."""
        rollout = self.rollouts.get(name)
        if rollout is not None and rollout.target.revision == served.revision:
            changed = rollout.model_copy(update={"target": served})
            return self.model_copy(update={"rollouts": {**self.rollouts, name: changed}})
        return self.model_copy(update={"models": {**self.models, name: served}})

    @property
    def run(self) -> str:
        """Names this run of `serve`: workers of another run are not ours."""
        return hashlib.sha256(self.token.encode()).hexdigest()[:8]

    @property
    def desired(self) -> Mapping[Stage, int]:
        return {
            stage: 0 if self.stopping else count
            for (name, _), model in self.served.items()
            for stage, count in model.stages_of(name).items()
        }

    def scaled(self, name: str, stage: int | None, replicas: int) -> "State":
        """With `replicas` of one stage (None: of each) in every version of the model, and in what it is rolled out to.

        Another cut has other stages: it gets a number for each, not one for a single stage.

        Raises NotFound for a model that is not served, InvalidRequest for a stage or number that cannot be.
        """
        model = self.models.get(name)
        if model is None:
            raise NotFound(f"no model {name!r} is served; served: {', '.join(sorted(self.models)) or 'none'}")
        if not 1 <= replicas <= MAX_REPLICAS:
            raise InvalidRequest(
                f"replicas: expected 1 to {MAX_REPLICAS}, got {replicas}; `shardline stop` ends a model"
            )
        stages = model.config.stages
        if stage is not None and not 0 <= stage < stages:
            raise InvalidRequest(f"stage: {name} has stages 0 to {stages - 1}, got {stage}")
        bounds = model.bounds
        if bounds is not None and any(
            not least <= replicas <= most
            for index, (least, most) in enumerate(zip(*bounds, strict=True))
            if stage in (None, index)
        ):
            raise InvalidRequest(
                f"replicas: {name} is scaled by what is asked of it, its stages between {bounds[0]} and {bounds[1]}; "
                "change `autoscaling` in its model.yaml and `shardline rollout` it"
            )
        changed = self.with_served(name, model.scaled(stage, replicas))
        rollout = self.rollouts.get(name)
        if rollout is None or (stage is not None and rollout.target.config.stages != stages):
            return changed
        return changed.with_served(name, rollout.target.scaled(stage, replicas))


class Control(Record):
    """How to reach the controller."""

    address: str
    token: str = Field(repr=False)


class Owner(Record):
    """A living `serve`. listen: the gateway's host:port. leaves: the controller and the workers run on when it ends."""

    pid: int
    listen: str
    leaves: bool = False


class StateDir:
    """The files of one `serve`. Creates the folder, readable by its owner alone."""

    def __init__(self, folder: Path) -> None:
        """Raises StateError."""
        self.folder = folder
        with writing(folder):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    @property
    def state_file(self) -> Path:
        return self.folder / "state.json"

    @property
    def control_file(self) -> Path:
        return self.folder / "control.json"

    @property
    def epoch_file(self) -> Path:
        return self.folder / "controller.epoch"

    @property
    def handler_code(self) -> Path:
        return self.folder / "handler-code"

    @property
    def lock_file(self) -> Path:
        return self.folder / "serve.lock"

    @contextmanager
    def owned(self, listen: str, *, leaves: bool = False) -> Iterator[Callable[[str], None]]:
        """Makes this process the folder's owner while the context lasts. Raises StateError where another one is.

        Yields a function that is told where the gateway listens in the end, where that is not `listen`.
        """
        with writing(self.lock_file):
            lock = os.open(self.lock_file, os.O_RDWR | os.O_CREAT, 0o600)
        with open(lock, "r+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                owner = self.owner()
                who = f"process {owner.pid}, which listens on {owner.listen}" if owner else "another process"
                raise StateError(
                    f"{self.folder}: belongs to a living `shardline serve` ({who}); stop it with `shardline stop "
                    f"--state-dir {self.folder}`, or give this one a --state-dir of its own"
                ) from error

            def announce(address: str) -> None:
                with writing(self.lock_file):
                    file.seek(0)
                    file.truncate()
                    file.write(Owner(pid=os.getpid(), listen=address, leaves=leaves).model_dump_json())
                    file.flush()

            announce(listen)
            yield announce

    def owner(self) -> "Owner | None":
        """The living `serve` that this folder belongs to; None where there is none."""
        try:
            with self.lock_file.open("r+") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    return _read(self.lock_file, Owner)
        except FileNotFoundError:
            return None
        return None

    def log(self, name: str) -> TextIO:
        """An empty file for what another program says. Raises StateError."""
        path = self.folder / name
        with writing(path):
            return path.open("w")

    def write_state(self, state: State) -> None:
        """Raises StateError."""
        write_private(self.state_file, state.model_dump_json(indent=1))

    def read_state(self) -> State:
        """Raises StateError."""
        return _read(self.state_file, State)

    def write_control(self, control: Control) -> None:
        """Raises StateError."""
        write_private(self.control_file, control.model_dump_json())

    def read_control(self) -> Control:
        """Raises StateError."""
        return _read(self.control_file, Control)


def write_private(path: Path, text: str) -> None:
    """Replaces `path`, readable by its owner alone, at once or not at all, also when the machine loses power.

    Raises StateError.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path):
        try:
            with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            with suppress(OSError):  # the write's own failure is the one to tell
                temporary.unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What the system refuses meanwhile is raised as a StateError that names `path` and says how to mend it."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            mend = f"let user {os.getuid()} write there, or give a --state-dir that it may write"
        elif error.errno in (errno.ENOSPC, errno.EDQUOT):
            mend = "free some space there, or give a --state-dir on another disk"
        else:
            mend = "remove what is in the way, or give another --state-dir"
        raise StateError(f"{path}: cannot be written: {error.strerror or error}; {mend}") from error


def _read(path: Path, kind: type[R]) -> R:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise StateError(f"{path}: cannot be read: {error.strerror}") from error
    if len(data) > MAX_FILE_BYTES:
        raise StateError(f"{path}: larger than {MAX_FILE_BYTES} bytes; remove it and start `shardline serve` again")
    return _parse(data, str(path), kind)


def parse_state(data: bytes, name: str) -> State:
    """`name` stands for where `data` came from. Raises StateError."""
    return _parse(data, name, State)


def _parse(data: bytes, name: str, kind: type[R]) -> R:
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "the file"
        raise StateError(f"{name}: {field}: {first['msg']}; remove it and start `shardline serve` again") from error
