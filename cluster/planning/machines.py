"""The nodes that a plan may use, and the file in which they are described.

nodes:
  - {name: small, count: 3, cpus: 8, memory_gib: 32, labels: {kind: small}}
  - {name: gpu, cpus: 16, memory_gib: 128, gpus: 1, gpu_memory_gib: 80, network_gbit: 25}
"""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Final

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

from worker.cores import cores
from worker.errors import InvalidRequest
from worker.per_stage import check_labels

GIB: Final = 2**30
MAX_FILE_BYTES: Final = 1 << 20
MAX_NODES: Final = 100_000


@dataclass(frozen=True, slots=True)
class Node:
    """One machine.

    device, gpu_device: the profile's names of what its cores and its GPUs are.
    speed, gpu_speed: how many times as fast as the device that was profiled.
    network: bytes a second in each direction; latency_s: one way to another node.
    labels: names and values that it has in Ray; a stage that was planned for its kind finds it by them.
    """

    name: str
    cpus: float
    memory: int
    gpus: int = 0
    gpu_memory: int = 0
    device: str = "cpu"
    gpu_device: str = "cuda"
    speed: float = 1.0
    gpu_speed: float = 1.0
    network: float = 1.25e9
    latency_s: float = 1e-4
    labels: tuple[tuple[str, str], ...] = ()


def _one_mapping(value: object) -> object:
    if not isinstance(value, dict):
        raise PydanticCustomError("mapping", "expected names and values such as {kind: small}")
    return check_labels(value)


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
    count: Annotated[int, Field(ge=1, le=MAX_NODES)] = 1
    cpus: Annotated[float, Field(gt=0, le=4096)]
    memory_gib: Annotated[float, Field(gt=0, le=1e6)]
    gpus: Annotated[int, Field(ge=0, le=64)] = 0
    gpu_memory_gib: Annotated[float, Field(ge=0, le=1e5)] = 0.0
    device: str = "cpu"
    gpu_device: str = "cuda"
    speed: Annotated[float, Field(gt=0, le=1000)] = 1.0
    gpu_speed: Annotated[float, Field(gt=0, le=1000)] = 1.0
    network_gbit: Annotated[float, Field(gt=0, le=1e5)] = 10.0
    latency_ms: Annotated[float, Field(ge=0, le=1e4)] = 0.1
    labels: Annotated[dict[str, str], BeforeValidator(_one_mapping)] = {}

    def nodes(self) -> list[Node]:
        def named(index: int) -> str:
            return self.name if self.count == 1 else f"{self.name}-{index}"

        return [
            Node(
                name=named(index),
                cpus=self.cpus,
                memory=int(self.memory_gib * GIB),
                gpus=self.gpus,
                gpu_memory=int(self.gpu_memory_gib * GIB),
                device=self.device,
                gpu_device=self.gpu_device,
                speed=self.speed,
                gpu_speed=self.gpu_speed,
                network=self.network_gbit * 1e9 / 8,
                latency_s=self.latency_ms / 1e3,
                labels=tuple(sorted(self.labels.items())),
            )
            for index in range(self.count)
        ]


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    nodes: Annotated[tuple[_Entry, ...], Field(min_length=1, max_length=10_000)]


def read_nodes(path: Path) -> tuple[Node, ...]:
    """The nodes that `path` describes.

    Raises:
        InvalidRequest: it cannot be read or is not such a file; names the field, what was expected and what came.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise InvalidRequest(f"{path}: cannot be read ({error.strerror})") from error
    if len(data) > MAX_FILE_BYTES:
        raise InvalidRequest(f"{path}: larger than {MAX_FILE_BYTES} bytes; this is not a nodes file")
    return parse_nodes(data, str(path))


def parse_nodes(data: bytes, name: str) -> tuple[Node, ...]:
    """Checks the text of a nodes file; `name` stands for it in errors. Raises `InvalidRequest`."""
    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(data, Loader=yaml.SafeLoader)):
            raise InvalidRequest(f"{name}: aliases are not taken; write the value out")
        document = yaml.safe_load(data)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise InvalidRequest(f"{name}: not YAML: {error}".replace("\n", " ")) from error
    if not isinstance(document, dict):
        raise InvalidRequest(f"{name}: expected `nodes:` and a list under it, got {type(document).__name__}")
    try:
        entries = _File.model_validate(document).nodes
    except ValidationError as error:
        raise InvalidRequest("\n".join(f"{name}: {_told(problem)}" for problem in error.errors())) from None  # type: ignore[arg-type]
    nodes = [node for entry in entries for node in entry.nodes()]
    if len(nodes) > MAX_NODES:
        raise InvalidRequest(f"{name}: {len(nodes)} nodes; at most {MAX_NODES} are planned for")
    names = [node.name for node in nodes]
    twice = next((one for one in names if names.count(one) > 1), None) if len(set(names)) < len(names) else None
    if twice is not None:
        raise InvalidRequest(f"{name}: nodes: two are named {twice!r}; give each entry a name of its own")
    for node in nodes:
        if node.gpus and not node.gpu_memory:
            raise InvalidRequest(f"{name}: nodes: {node.name}: gpus without gpu_memory_gib; say how much each has")
    return tuple(nodes)


def _told(problem: dict[str, object]) -> str:
    location = problem["loc"]
    path = [str(part) for part in location] if isinstance(location, tuple) else []
    where = ".".join(path) or "the file"
    if problem["type"] == "extra_forbidden":
        known = list(_Entry.model_fields if len(path) > 1 else _File.model_fields)
        near = get_close_matches(path[-1], known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}"
        return f"{where}: unknown key; {hint}"
    if problem["type"] == "missing":
        return f"{where}: missing"
    got = repr(problem["input"])
    return f"{where}: {problem['msg']}, got {got if len(got) <= 60 else got[:57] + '...'}"


def this_machine(memory: int, cpus: int | None = None, gpus: Sequence[int] = ()) -> tuple[Node, ...]:
    """This machine as the only node. `memory`: bytes of it; `gpus`: those of each GPU, of which the least counts."""
    return (Node("this-machine", float(cpus or cores()), memory, len(gpus), min(gpus, default=0)),)


def total(nodes: Sequence[Node]) -> str:
    """The nodes in a few words."""
    cpus, gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    memory = sum(node.memory for node in nodes) / GIB
    return f"{len(nodes)} node{'s' * (len(nodes) != 1)}, {cpus:g} CPUs, {gpus} GPUs, {memory:.0f} GiB"
