"""Builds a kustomization as `kubectl kustomize` does, as far as ours needs it: the checks run without kubectl."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import yaml

Manifest = dict[str, Any]


def build(folder: Path) -> list[Manifest]:
    """The manifests of `folder`/kustomization.yaml. Raises ValueError for what only kubectl understands."""
    kustomization: Mapping[str, Any] = yaml.safe_load((folder / "kustomization.yaml").read_text())
    manifests = [one for name in kustomization["resources"] for one in _resource(folder / name)]
    for key, value in kustomization.items():
        if key in {"apiVersion", "kind", "resources"}:
            continue
        if key not in TRANSFORMERS:
            raise ValueError(f"{folder}: {key}: expected one of {', '.join(TRANSFORMERS)}; teach it to this builder")
        TRANSFORMERS[key](manifests, value, folder)
    return manifests


def _resource(path: Path) -> list[Manifest]:
    return build(path) if path.is_dir() else list(yaml.safe_load_all(path.read_text()))


def _namespace(manifests: list[Manifest], name: str, _: Path) -> None:
    for one in manifests:
        one["metadata"]["name" if one["kind"] == "Namespace" else "namespace"] = name


def _labels(manifests: list[Manifest], groups: list[Mapping[str, Any]], _: Path) -> None:
    for group in groups:
        if set(group) != {"pairs"}:
            raise ValueError(f"labels: expected pairs alone, got {', '.join(group)}; teach the rest to this builder")
        for one in manifests:
            one["metadata"]["labels"] = {**one["metadata"].get("labels", {}), **group["pairs"]}


def _images(manifests: list[Manifest], changes: list[Mapping[str, str]], _: Path) -> None:
    by_name = {change["name"]: change for change in changes}
    for container in [found for one in manifests for found in _containers(one)]:
        name, _colon, tag = container["image"].partition(":")
        if name in by_name:
            change = by_name[name]
            container["image"] = f"{change.get('newName', name)}:{change.get('newTag', tag)}"


def _containers(value: Any) -> Iterator[Manifest]:
    """Wherever they stand, also in kinds that are not Kubernetes' own."""
    if isinstance(value, dict):
        for key, item in value.items():
            if key in {"containers", "initContainers"}:
                yield from item
            else:
                yield from _containers(item)
    elif isinstance(value, list):
        for item in value:
            yield from _containers(item)


def _patches(manifests: list[Manifest], patches: list[Mapping[str, Any]], folder: Path) -> None:
    for patch in patches:
        target = patch["target"]
        wanted = ("/".join(filter(None, (target.get("group"), target["version"]))), target["kind"], target["name"])
        (found,) = (one for one in manifests if (one["apiVersion"], one["kind"], one["metadata"]["name"]) == wanted)
        for step in yaml.safe_load((folder / patch["path"]).read_text()):
            *above, last = step["path"].strip("/").split("/")
            if step["op"] != "add" or last != "-":
                raise ValueError(f"{patch['path']}: expected a path that ends with /- to add to, got {step['path']}")
            place: Any = found
            for key in above:
                place = place[key]
            place.append(step["value"])


TRANSFORMERS: Final[Mapping[str, Callable[[list[Manifest], Any, Path], None]]] = {
    "namespace": _namespace,
    "labels": _labels,
    "patches": _patches,
    "images": _images,
}
