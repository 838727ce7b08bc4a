"""How a model is served: `models/NAME/model.yaml`, read, checked and written.

Every key has a default, so an empty file is a valid one. Unknown keys are refused. An error names the file and line,
the key, what was expected and what came. Needs neither torch nor Ray.
"""

import os
import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from worker.batcher import Batching
from worker.errors import ShardlineError

MAX_FILE_BYTES = 64 * 1024
MAX_DEPTH = 8

Lines = dict[tuple[str | int, ...], int]
"""The line of each key, by its path from the root."""


class ModelYamlError(ShardlineError):
    """`model.yaml` is not what Shardline takes. The message starts with `FILE:LINE:`."""

    code = 3


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


def _replicas(value: object) -> object:
    counts = value if isinstance(value, list | tuple) else (value,)
    if not counts or any(type(count) is not int or not 1 <= count <= 1024 for count in counts):
        raise PydanticCustomError(
            "replicas", "expected a whole number from 1 to 1024, or a list with one for each stage such as [2, 1]"
        )
    return tuple(counts) if isinstance(value, list | tuple) else value


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
    max_padding: float = Field(
        default=_BATCHING.max_padding,
        ge=0,
        le=1,
        description="share from 0 to 1: the most of one batch that may be padding",
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
        default=1024, ge=1, le=100_000_000, description="rows: the most that wait in one replica; more are refused"
    )


class ModelYaml(Section):
    """One model's settings. A key's unit and meaning are its description, which is also its comment in the file."""

    handler: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$",
        description="module:Class that turns a client's tensors into the program's and back; null: none",
    )
    versions: Annotated[Literal["newest"] | tuple[int, ...], BeforeValidator(_versions)] = Field(
        default="newest", description="newest, or a list of the versions to serve, such as [1, 2]"
    )
    stages: int = Field(
        default=1, ge=1, le=64, description="shards that the program is cut into; each runs in its own workers"
    )
    replicas: Annotated[int | tuple[int, ...], BeforeValidator(_replicas)] = Field(
        default=1, description="workers of each stage: one number, or a list with one for each stage"
    )
    cpus: float = Field(
        default=1.0,
        gt=0,
        le=1024,
        description="CPU cores that one replica takes; it computes with as many threads, at least 1",
    )
    device: str = Field(
        default="cpu",
        pattern=r"^(cpu|cuda|cuda:\d{1,3})$",
        description="cpu; cuda: a whole GPU that Ray picks; cuda:N: that GPU, and Ray does not count it",
    )
    runtime: Literal["fastest", "eager"] = Field(
        default="fastest", description="fastest: what packaging measured to be fastest here; eager: uncompiled"
    )
    batching: BatchingSection = Field(default=BatchingSection(), description="how requests are put together")
    deadline_s: float = Field(
        default=30.0, gt=0, le=86_400, description="seconds: the deadline of a request that brings none"
    )
    limits: LimitsSection = Field(default=LimitsSection(), description="beyond these a request is refused, not queued")
    drain_s: float = Field(
        default=30.0,
        gt=0,
        le=3600,
        description="seconds: the longest that a replica which is to stop finishes what it owes",
    )

    @field_validator("replicas")
    @classmethod
    def _one_count_for_each_stage(cls, value: int | tuple[int, ...], info: ValidationInfo) -> int | tuple[int, ...]:
        stages = info.data.get("stages")
        if isinstance(value, tuple) and stages is not None and len(value) != stages:
            raise PydanticCustomError(
                "replicas", "expected {stages} numbers, one for each stage, or a single number", {"stages": stages}
            )
        return value

    @property
    def stage_replicas(self) -> tuple[int, ...]:
        """Replicas of each stage, stage 0 first."""
        return self.replicas if isinstance(self.replicas, tuple) else (self.replicas,) * self.stages

    @property
    def threads(self) -> int:
        """Threads that one replica computes with."""
        return max(1, int(self.cpus))


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
    lines: Lines = {(): 1}
    try:
        _refuse_tricks(data, name)
        loader = yaml.SafeLoader(data)
        try:
            root = loader.get_single_node()
            values = {} if root is None else _plain(loader, root, (), lines, name)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ModelYamlError(f"{name}:{line}: not YAML: {error.problem}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ModelYamlError(f"{name}:1: not YAML: {error}".replace("\n", " ")) from error
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise ModelYamlError(f"{name}:1: expected keys such as `stages: 2`, got {_shown(values)}")
    try:
        return ModelYaml.model_validate(values)
    except ValidationError as error:
        problems = sorted(_problems(error.errors(include_url=False), lines))
        raise ModelYamlError("\n".join(f"{name}:{line}: {text}" for line, text in problems)) from None


def _refuse_tricks(data: bytes, name: str) -> None:
    """Refuses aliases (a small file that unfolds into a huge one) and deep nesting, before anything is built."""
    depth = 0
    for event in yaml.parse(data, Loader=yaml.SafeLoader):
        line = event.start_mark.line + 1 if event.start_mark else 1
        if isinstance(event, yaml.AliasEvent):
            raise ModelYamlError(f"{name}:{line}: *{event.anchor}: aliases are not taken; write the value out")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise ModelYamlError(f"{name}:{line}: nested more than {MAX_DEPTH} deep; no key of model.yaml is")


def _plain(loader: yaml.SafeLoader, node: yaml.Node, path: tuple[str | int, ...], lines: Lines, name: str) -> Any:
    """The value of `node`, and in `lines` the line of each key under it."""
    lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.SequenceNode):
        return [_plain(loader, child, (*path, index), lines, name) for index, child in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode):
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            key = key_node.value
            if not isinstance(key_node, yaml.ScalarNode):
                raise ModelYamlError(f"{name}:{line}: expected a key, got a list or a mapping")
            if key in values:
                raise ModelYamlError(f"{name}:{line}: {_dotted((*path, key))}: given twice")
            lines[(*path, key)] = line
            values[key] = _plain(loader, value_node, (*path, key), lines, name)
        return values
    try:
        return loader.construct_object(node)
    except ValueError as error:
        raise ModelYamlError(f"{name}:{node.start_mark.line + 1}: {_dotted(path)}: not a value: {error}") from error


def _problems(errors: list[ErrorDetails], lines: Lines) -> Iterator[tuple[int, str]]:
    for error in errors:
        path = error["loc"]
        key = _dotted(path)
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
            raise TypeError(f"{_dotted(path)} is not a section of model.yaml")
        section = annotation
    return section


def _field(path: tuple[str | int, ...]) -> Any:
    return _section(path[:-1]).model_fields[str(path[-1])]


def _known_keys(path: tuple[str | int, ...]) -> list[str]:
    return list(_section(path).model_fields)


def _hint(key: str, known: list[str]) -> str:
    near = get_close_matches(key, known, n=1)
    return f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}"


def _dotted(path: tuple[str | int, ...]) -> str:
    return ".".join(str(part) for part in path)


def _shown(value: object) -> str:
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def write_model_yaml(path: Path, model: ModelYaml) -> None:
    """Writes `model` to `path`, at once or not at all, with a comment on every key. Replaces what was there."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(model_yaml_text(model))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


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
    """Every key, dotted, and what it means: what the documentation and `--help` show."""

    def under(section: type[BaseModel], prefix: str) -> Iterator[tuple[str, str]]:
        for key, field in section.model_fields.items():
            annotation = field.annotation
            if isinstance(annotation, type) and issubclass(annotation, BaseModel):
                yield from under(annotation, f"{prefix}{key}.")
            else:
                yield prefix + key, field.description or ""

    return dict(under(ModelYaml, ""))
