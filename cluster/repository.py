"""The folder of models: which models and versions there are to serve, and whether that changed since."""

import hashlib
import re
from contextlib import ExitStack
from pathlib import Path

from cluster.state import ServedModel
from worker.errors import ShardlineError
from worker.handler_code import HandlerCodeError, code_hash, importable
from worker.model_yaml import ModelYaml, read_model_yaml
from worker.nouns import Signature

MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
VERSION_NAME = re.compile(r"[1-9][0-9]{0,8}")


class RepositoryError(ShardlineError):
    """The folder of models cannot be served as it is; the message names the folder and says how to mend it."""

    code = 3


def read_repository(folder: Path) -> dict[str, ServedModel]:
    """Every model in `folder` with the versions that its `model.yaml` asks for.

    Raises RepositoryError, or ModelYamlError with file and line.
    """
    if not folder.is_dir():
        raise RepositoryError(f"{folder}: no such folder; `shardline package SOURCE --out {folder}/NAME` makes one")
    models = {path.name: read_model(path) for path in sorted(folder.iterdir()) if _is_model(path)}
    if not models:
        raise RepositoryError(f"{folder}: no model in it; `shardline package SOURCE --out {folder}/NAME` makes one")
    return models


def with_signatures(folder: Path, models: dict[str, ServedModel]) -> dict[str, ServedModel]:
    """`models` with what clients of each version send and get. Checks every artifact.

    Raises ArtifactError, or what an operator's handler raises.
    """
    return {name: _with_signatures(folder, name, model) for name, model in models.items()}


def _with_signatures(folder: Path, name: str, model: ServedModel) -> ServedModel:
    folders = {version: artifact_folder(folder, name, version) for version in model.replicas}
    signatures = {version: _signature(path, model.config) for version, path in folders.items()}
    manifests = {
        version: hashlib.sha256((path / "manifest.json").read_bytes()).hexdigest() for version, path in folders.items()
    }
    return model.model_copy(update={"signatures": signatures, "manifests": manifests})


def _signature(folder: Path, config: ModelYaml) -> Signature:
    from worker.artifact import load_artifact  # noqa: PLC0415 -- brings torch; the controller does without
    from worker.handler import load_handler  # noqa: PLC0415

    artifact, handler = load_artifact(folder), config.handler
    if handler is None:
        return artifact.manifest.signature
    try:
        with ExitStack() as stack:
            if config.handler_code is not None:
                stack.enter_context(importable(folder.parent / config.handler_code, handler))
            return load_handler(handler, folder / "handler").signature
    except ShardlineError:
        raise
    except Exception as error:
        raise RepositoryError(f"handler {handler!r} fails on {folder / 'handler'}: {error!r}") from error


def artifact_folder(repository: Path, model: str, version: int) -> Path:
    return repository / model / str(version)


def changes(folder: Path, served: dict[str, ServedModel]) -> list[str]:
    """What in `folder` is no longer as it is served, one sentence each. A file that cannot be read is a change."""
    try:
        now = read_repository(folder)
    except ShardlineError as error:
        return [f"{error} (what is served goes on as it is)"]
    return [
        *(f"{folder / name} appeared; `shardline rollout {name}` serves it" for name in sorted(now.keys() - served)),
        *(f"{folder / name} is gone; it is served until `serve` starts again" for name in sorted(served.keys() - now)),
        *(
            change
            for name in sorted(now.keys() & served)
            for change in _model_changes(folder / name, served[name], now[name])
        ),
    ]


def _model_changes(folder: Path, old: ServedModel, new: ServedModel) -> list[str]:
    found = []
    if new.config != old.config:
        found.append(f"{folder / 'model.yaml'} changed; `shardline rollout {folder.name}` takes it")
    elif new.code != old.code:
        found.append(f"{folder / str(new.config.handler_code)} changed; `shardline rollout {folder.name}` takes it")
    appeared = sorted(new.replicas.keys() - old.replicas.keys())
    if new.config == old.config and appeared:
        serving = ", ".join(str(version) for version in sorted(old.replicas))
        found.append(
            f"{folder / str(appeared[-1])} appeared; version {serving} is served until "
            f"`shardline rollout {folder.name}`"
        )
    return found


def _is_model(path: Path) -> bool:
    if not path.is_dir() or path.name.startswith("."):
        return False
    return (path / "model.yaml").exists() or any(VERSION_NAME.fullmatch(child.name) for child in path.iterdir())


def read_model(folder: Path) -> ServedModel:
    """One model as its files are now. Raises RepositoryError, or ModelYamlError with file and line."""
    if not folder.is_dir():
        raise RepositoryError(f"{folder}: no such model; `shardline package SOURCE --out {folder}` makes one")
    if not MODEL_NAME.fullmatch(folder.name):
        raise RepositoryError(
            f"{folder}: a model's name is 1 to 128 letters, digits, '.', '_' or '-' and starts with a letter or digit; "
            "rename the folder"
        )
    config = read_model_yaml(folder / "model.yaml")
    replicas = dict.fromkeys(_versions(folder, config), config.stage_replicas)
    return ServedModel(config=config, replicas=replicas, code=_code(folder, config))


def _code(folder: Path, config: ModelYaml) -> str:
    if config.handler_code is None:
        return ""
    try:
        return code_hash(folder, config.handler_code)
    except (HandlerCodeError, OSError) as error:
        raise RepositoryError(f"{folder / 'model.yaml'}: {error}") from error


def _versions(folder: Path, config: ModelYaml) -> list[int]:
    there = sorted(int(path.name) for path in folder.iterdir() if path.is_dir() and VERSION_NAME.fullmatch(path.name))
    if not there:
        raise RepositoryError(f"{folder}: has no version, such as {folder}/1; package the model again")
    if config.versions == "newest":
        return there[-1:]
    missing = sorted(set(config.versions) - set(there))
    if missing:
        raise RepositoryError(f"{folder / 'model.yaml'}: versions: there is no version {missing[0]}, only {there}")
    return sorted(config.versions)
