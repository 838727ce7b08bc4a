"""YAML that keeps the line of each key, for errors that point at it. Refuses what could unfold or nest without end."""

from typing import Any

import yaml

from worker.errors import ShardlineError

MAX_DEPTH = 8

Lines = dict[tuple[str | int, ...], int]
"""The line of each key, by its path from the root."""


class ModelYamlError(ShardlineError):
    """`model.yaml` is not what Shardline takes. The message starts with `FILE:LINE:`."""

    code = 3


def parse_with_lines(data: bytes, name: str) -> tuple[Any, Lines]:
    """The plain values in `data`, and the line of each key; `name` stands for the file in errors.

    Raises ModelYamlError.
    """
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
    return values, lines


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
                raise ModelYamlError(f"{name}:{line}: {dotted((*path, key))}: given twice")
            lines[(*path, key)] = line
            values[key] = _plain(loader, value_node, (*path, key), lines, name)
        return values
    try:
        return loader.construct_object(node)
    except ValueError as error:
        raise ModelYamlError(f"{name}:{node.start_mark.line + 1}: {dotted(path)}: not a value: {error}") from error


def dotted(path: tuple[str | int, ...]) -> str:
    return ".".join(str(part) for part in path)
