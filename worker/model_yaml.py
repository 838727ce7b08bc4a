"""How a model is served: `models/NAME/model.yaml`, read, checked and written.

Every key has a default, so an empty file is a valid one. Unknown keys are refused. An error names the file and line,
the key, what was expected and what came. Needs neither torch nor Ray.
"""

import os
import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from worker.batcher import Batching
from worker.per_stage import (
    StageSettings,
    check_cpus,
    check_device,
    check_labels,
    check_memory,
    check_most,
    check_resources,
    check_whole,
    of_each,
)
from worker.yaml_lines import Lines, ModelYamlError, dotted, parse_with_lines

MAX_FILE_BYTES = 64 * 1024
_CODE_PART = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")
_BATCHING = Batching()


def _versions(value: object) -> object:
    if value == "newest":
        return value
    numbers = value if isinstance(value, list | tuple) else ()
    if not numbers or any(type(number) is not int or number < 1 for number in numbers):
        raise PydanticCustomError("versions", "expected newest, or a list of whole numbers from 1 such as [1, 2]")
    if len(set(numbers)) < len(numbers):
        raise PydanticCustomError("versions", "expected each version once")
    return tuple(numbers)


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class BatchingSection(Section):
    max_rows: int = Field(
        default=_BATCHING.max_rows, ge=1, le=65536, description="rows: the most that are computed at once"
    )
    max_wait_ms: float = Field(
        default=_BATCHING.max_wait_s * 1e3,
        ge=0,
        le=10_000,
        description="milliseconds: the longest that stage 0 waits for a batch to fill",
    )
    max_bytes: int = Field(
        default=_BATCHING.max_bytes,
        ge=1024,
        le=2**31 - 1,
        description="bytes: the most that one batch's padded inputs take",
    )
    max_padding: float | None = Field(
        default=_BATCHING.max_padding,
        ge=0,
        le=1,
        description="share from 0 to 1: the most of one batch that may be padding; null: as much as "
        "costs no more than a batch more, as measured in warm-up",
    )

    def as_batching(self) -> Batching:
        return Batching(self.max_rows, self.max_wait_ms / 1e3, self.max_bytes, self.max_padding)


class LimitsSection(Section):
    max_inflight: int = Field(
        default=1024, ge=1, le=1_000_000, description="requests: the most that one gateway process holds for the model"
    )
    max_inflight_per_replica: int = Field(
        default=64, ge=1, le=1_000_000, description="requests: the most that one caller has in flight to one replica"
    )
    max_queue_rows: int = Field(
        default=1024,
        ge=1,
        le=100_000_000,
        description="rows: the most that wait in one replica of the first stage; more are refused",
    )
    admission: Literal["predicted", "queue"] = Field(
        default="predicted",
        description="predicted: what would be late is refused at once, or given up where it waits; queue: it is queued",
    )
    hedge_share: float = Field(
        default=0.0,
        ge=0,
        le=0.5,
        description="share from 0 to 0.5: so many requests at most go to a second replica too, if the first takes long",
    )


class AutoscalingSection(Section):
    max: Annotated[int | tuple[int, ...] | None, BeforeValidator(check_most)] = Field(
        default=None, description="the most workers of each stage, one number or a list; null: no autoscaling"
    )
    min: Annotated[int | tuple[int, ...], BeforeValidator(partial(check_whole, 0))] = Field(
        default=1,
        description="the fewest workers of each stage, one number or a list; 0: none while nobody asks for anything",
    )
    target_utilisation: float = Field(
        default=0.7, ge=0.05, le=1, description="share from 0.05 to 1: of its time, that a worker should compute"
    )
    up_delay_s: float = Field(
        default=1.0, ge=0, le=600, description="seconds: how long more must be needed before more are started"
    )
    down_delay_s: float = Field(
        default=60.0, ge=0, le=3600, description="seconds: how long fewer must be needed before some are stopped"
    )
    clear_backlog_s: float = Field(
        default=2.0, gt=0, le=600, description="seconds: within which what waits should have been computed"
    )
    from_zero_wait_s: float = Field(
        default=60.0, gt=0, le=600, description="seconds: the longest that a request waits for the first worker"
    )


class SharingSection(Section):
    priority: int = Field(
        default=1, ge=0, le=9, description="0 to 9: where room is short, models of a lower number scale first"
    )
    weight: float = Field(default=1.0, gt=0, le=1000, description="share of the room among models of the same priority")


class PlacementSection(Section):
    resources: Annotated[dict[str, float] | tuple[dict[str, float], ...], BeforeValidator(check_resources)] = Field(
        default={}, description="what a worker takes of its node besides CPUs, or a list of such for each stage"
    )
    labels: Annotated[dict[str, str] | tuple[dict[str, str], ...], BeforeValidator(check_labels)] = Field(
        default={}, description="labels that a worker's node must have, or a list of such for each stage"
    )


class ModelYaml(Section):
    """One model's settings. A key's unit and meaning are its description, which is also its comment in the file."""

    handler: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$",
        description="module:Class that turns a client's tensors into the program's and back; null: none",
    )
    handler_code: str | None = Field(
        default=None,
        description="folder beside this file that holds the handler's module, such as code; null: it is installed on "
        "every node",
    )
    versions: Annotated[Literal["newest"] | tuple[int, ...], BeforeValidator(_versions)] = Field(
        default="newest", description="newest, or a list of the versions to serve, such as [1, 2]"
    )
    stages: int = Field(
        default=1, ge=1, le=64, description="shards that the program is cut into; each runs in its own workers"
    )
    replicas: Annotated[int | tuple[int, ...], BeforeValidator(partial(check_whole, 1))] = Field(
        default=1, description="workers of each stage: one number, or a list with one for each stage"
    )
    cpus: Annotated[float | tuple[float, ...], BeforeValidator(check_cpus)] = Field(
        default=1.0,
        description="CPU cores that one replica takes, one number or a list with one for each stage; it computes with "
        "as many threads, at least 1",
    )
    device: Annotated[str | tuple[str, ...], BeforeValidator(check_device)] = Field(
        default="cpu",
        description="cpu; cuda: a whole GPU that Ray picks; cuda:N: that GPU, and Ray does not count it; or a list",
    )
    memory_mib: Annotated[int | tuple[int, ...], BeforeValidator(check_memory)] = Field(
        default=0,
        description="MiB of its node's memory that one replica reserves, one number or a list with one for each stage; "
        "0: none, so that as many share a node as its CPUs allow",
    )
    runtime: Literal["fastest", "eager"] = Field(
        default="fastest", description="fastest: what packaging measured to be fastest here; eager: uncompiled"
    )
    batching: BatchingSection = Field(default=BatchingSection(), description="how requests are put together")
    deadline_s: float = Field(
        default=30.0, gt=0, le=86_400, description="seconds: the deadline of a request that brings none"
    )
    autoscaling: AutoscalingSection = Field(
        default=AutoscalingSection(), description="how many workers there are, by what is asked of them"
    )
    sharing: SharingSection = Field(
        default=SharingSection(), description="who gets room first where models compete for it"
    )
    placement: PlacementSection = Field(
        default=PlacementSection(), description="on which nodes workers may be, besides having the CPUs"
    )
    limits: LimitsSection = Field(default=LimitsSection(), description="beyond these a request is refused, not queued")
    drain_s: float = Field(
        default=30.0,
        gt=0,
        le=3600,
        description="seconds: the longest that a replica which is to stop finishes what it owes",
    )

    @field_validator("handler_code")
    @classmethod
    def _folder_of_the_handler(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is None:
            return None
        if not all(_CODE_PART.fullmatch(part) for part in value.split("/")):
            raise PydanticCustomError(
                "handler_code",
                "expected a folder inside of the model's, by its relative path, such as code: letters, digits, '_', "
                "'-' and '.', no part of it beginning with '.'",
            )
        if value.split("/")[0].isdecimal():
            raise PydanticCustomError(
                "handler_code", "expected a folder outside of the versions: no code is taken from an artifact"
            )
        if info.data.get("handler", "") is None:
            raise PydanticCustomError("handler_code", "expected `handler` beside it, with the module and the class")
        return value

    @field_validator("replicas", "cpus", "memory_mib", "device", "autoscaling", "placement")
    @classmethod
    def _one_for_each_stage(cls, value: object, info: ValidationInfo) -> object:
        stages = info.data.get("stages")
        lists = [(str(info.field_name), value)] if not isinstance(value, Section) else list(value)
        for key, each in lists:
            if isinstance(each, tuple) and stages is not None and len(each) != stages:
                raise PydanticCustomError(
                    "per_stage",
                    "{key}expected {stages} values, one for each stage, or a single one",
                    {"stages": stages, "key": f"{key}: " if isinstance(value, Section) else ""},
                )
        return value

    @field_validator("autoscaling")
    @classmethod
    def _bounds_that_can_be(cls, value: AutoscalingSection, info: ValidationInfo) -> AutoscalingSection:
        stages = info.data.get("stages") or 1
        if value.max is not None:
            least, most = of_each(value.min, stages), of_each(value.max, stages)
            if any(one > other for one, other in zip(least, most, strict=True)):
                raise PydanticCustomError("bounds", "expected no min above its max")
            if 0 in least and any(least):
                raise PydanticCustomError("bounds", "expected a min of 0 for every stage, or for none")
        return value

    @property
    def stage_replicas(self) -> tuple[int, ...]:
        """Replicas of each stage to begin with, stage 0 first."""
        wanted = of_each(self.replicas, self.stages)
        if self.autoscaling.max is None:
            return wanted
        most = of_each(self.autoscaling.max, self.stages)
        least = of_each(self.autoscaling.min, self.stages)
        return tuple(max(low, min(high, count)) for count, low, high in zip(wanted, least, most, strict=True))

    @property
    def scaled_between(self) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
        """The fewest and the most replicas of each stage; None: their number is fixed."""
        scaling = self.autoscaling
        if scaling.max is None:
            return None
        return of_each(scaling.min, self.stages), of_each(scaling.max, self.stages)

    @property
    def from_zero_wait_s(self) -> float:
        """The longest that a request waits for a first worker; 0: this model always has one."""
        bounds = self.scaled_between
        return self.autoscaling.from_zero_wait_s if bounds and not any(bounds[0]) else 0.0

    def stage(self, index: int) -> StageSettings:
        """What one replica of that stage takes."""
        return StageSettings(
            cpus=of_each(self.cpus, self.stages)[index],
            device=of_each(self.device, self.stages)[index],
            resources=of_each(self.placement.resources, self.stages)[index],
            labels=of_each(self.placement.labels, self.stages)[index],
            memory_mib=of_each(self.memory_mib, self.stages)[index],
        )


def read_model_yaml(path: Path) -> ModelYaml:
    """Reads and checks `path`. Raises ModelYamlError."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ModelYamlError(
            f"{path}:1: cannot be read ({error.strerror}); an empty file is enough to serve with the defaults"
        ) from error
    if len(data) > MAX_FILE_BYTES:
        raise ModelYamlError(f"{path}:1: larger than {MAX_FILE_BYTES} bytes; this is not a model.yaml")
    return parse_model_yaml(data, str(path))


def parse_model_yaml(data: bytes, name: str) -> ModelYaml:
    """Checks the text of a `model.yaml`; `name` stands for it in errors. Raises ModelYamlError."""
    values, lines = parse_with_lines(data, name)
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise ModelYamlError(f"{name}:1: expected keys such as `stages: 2`, got {_shown(values)}")
    try:
        return ModelYaml.model_validate(values)
    except ValidationError as error:
        problems = sorted(_problems(error.errors(include_url=False), lines))
        raise ModelYamlError("\n".join(f"{name}:{line}: {text}" for line, text in problems)) from None


def _problems(errors: list[ErrorDetails], lines: Lines) -> Iterator[tuple[int, str]]:
    for error in errors:
        path = error["loc"]
        key = dotted(path)
        if error["type"] == "extra_forbidden":
            yield lines[path], f"{key}: unknown key; {_hint(str(path[-1]), _known_keys(path[:-1]))}"
            continue
        line = next(lines[path[:end]] for end in range(len(path), -1, -1) if path[:end] in lines)
        if error["type"] == "string_pattern_mismatch":
            wanted = f"expected {_field(path).description}"
        elif error["type"] == "model_type":
            wanted = f"expected keys below it: {', '.join(_known_keys(path))}"
        else:
            wanted = re.sub(r"^Input should be ", "expected ", error["msg"])
        yield line, f"{key}: {wanted}, got {_shown(error['input'])}"


def _section(path: tuple[str | int, ...]) -> type[BaseModel]:
    section: type[BaseModel] = ModelYaml
    for key in path:
        annotation = section.model_fields[str(key)].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            raise TypeError(f"{dotted(path)} is not a section of model.yaml")
        section = annotation
    return section


def _field(path: tuple[str | int, ...]) -> Any:
    return _section(path[:-1]).model_fields[str(path[-1])]


def _known_keys(path: tuple[str | int, ...]) -> list[str]:
    return list(_section(path).model_fields)


def _hint(key: str, known: list[str]) -> str:
    near = get_close_matches(key, known, n=1)
    return f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}"


def _shown(value: object) -> str:
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def write_model_yaml(path: Path, model: ModelYaml) -> None:
    """Writes `model` to `path`, at once or not at all, with a comment on every key. Replaces what was there.

    Raises OSError that names `path`.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            temporary.write_text(model_yaml_text(model))
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise


def model_yaml_text(model: ModelYaml) -> str:
    """`model` as YAML, every key preceded by a comment that says its unit."""
    return "# How this model is served. Read when `shardline serve` starts.\n" + "\n".join(_written(model, ""))


def _written(section: BaseModel, indent: str) -> Iterator[str]:
    for key, field in type(section).model_fields.items():
        value = getattr(section, key)
        yield f"{indent}# {field.description}"
        if isinstance(value, BaseModel):
            yield f"{indent}{key}:"
            yield from _written(value, indent + "  ")
        else:
            yield f"{indent}{key}: {_yaml_value(value)}"
    if not indent:
        yield ""


def _yaml_value(value: object) -> str:
    plain: object = list(value) if isinstance(value, tuple) else value
    return yaml.safe_dump(plain, default_flow_style=True, width=1000).removesuffix("\n").removesuffix("\n...")


def known_keys() -> Mapping[str, str]:
    """Every key, dotted, and what it means: what docs/models.md shows."""

    def under(section: type[BaseModel], prefix: str) -> Iterator[tuple[str, str]]:
        for key, field in section.model_fields.items():
            annotation = field.annotation
            if isinstance(annotation, type) and issubclass(annotation, BaseModel):
                yield from under(annotation, f"{prefix}{key}.")
            else:
                yield prefix + key, field.description or ""

    return dict(under(ModelYaml, ""))
