"""Brings an artifact to this node: from the folder of models where the node has it, else from the controller.

What is fetched lands in a cache by the hash of its manifest, file by file, each checked against the manifest. A fetch
that breaks off goes on where it was. Several workers of one node fetch once. What is damaged later is fetched again.
"""

import hashlib
import logging
import os
import shutil
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import grpc

from protos import control_pb2, control_pb2_grpc
from worker.artifact_cache import KEPT_BYTES, PART, WITHIN_S, ArtifactCache
from worker.channel import DIRECT
from worker.errors import Unavailable, from_code

if TYPE_CHECKING:
    from worker.artifact import Artifact

CACHE: Final = Path("~/.cache/shardline/artifacts")
ATTEMPTS: Final = 5
"""Times that a fetch may break off before it is given up."""
PAUSE_S: Final = 1.0
"""Before the second attempt; doubles from one to the next."""
FILE_WITHIN_S: Final = 3600.0
"""Longest that one file may take."""
MANIFEST: Final = "manifest.json"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ArtifactSource:
    """address: host:port of the controller. manifest: sha256 of the version's manifest; empty: any will do.

    keep_bytes: of what was fetched to the node; beyond, what no worker uses is removed.
    """

    address: str
    model: str
    version: int
    manifest: str = ""
    cache: str = str(CACHE)
    keep_bytes: int = KEPT_BYTES


@dataclass(frozen=True, slots=True)
class LocalArtifact:
    """An artifact on this node. While `hold` is open, nobody removes it to make room."""

    artifact: "Artifact"
    hold: ExitStack = field(default_factory=ExitStack)


def local_artifact(folder: Path, source: ArtifactSource, token: str, pause_s: float = PAUSE_S) -> LocalArtifact:
    """The artifact: in `folder` where that is it, else in the cache. Blocks while it fetches.

    `pause_s`: before the second attempt where the controller is away, and before each where it is busy.

    Raises `ArtifactError` where what comes is not what it should be, `Unavailable` where nothing comes, OSError where
    the cache cannot be written.
    """
    from worker.artifact import ArtifactError, load_artifact  # noqa: PLC0415 -- brings torch

    if _is_it(folder, source.manifest):
        return LocalArtifact(load_artifact(folder))
    if not source.manifest:
        raise Unavailable(f"{folder}: not on this node, and what to fetch is not known; share the folder of models")
    cache = ArtifactCache(Path(source.cache).expanduser())
    target = cache.place(source.manifest)
    with ExitStack() as hold:
        with cache.alone(source.manifest):
            hold.enter_context(cache.used(source.manifest))
            if not target.is_dir():
                _fetch_all(target, source, token, pause_s)
                cache.prune(source.keep_bytes)
        try:
            artifact = load_artifact(target)
        except (ArtifactError, FileNotFoundError) as error:  # gone: another worker of this node replaces it just now
            logger.warning("%s: it is fetched once more", error)
            with cache.alone(source.manifest):
                artifact = _mended(target, source, token, pause_s)
        return LocalArtifact(artifact, hold.pop_all())


def _mended(target: Path, source: ArtifactSource, token: str, pause_s: float) -> "Artifact":
    """What is in `target`, fetched once more where another worker has not done so already."""
    from worker.artifact import ArtifactError, load_artifact  # noqa: PLC0415

    try:
        return load_artifact(target)
    except ArtifactError:
        shutil.rmtree(target)
        _fetch_all(target, source, token, pause_s)
        return load_artifact(target)


def _is_it(folder: Path, manifest: str) -> bool:
    path = folder / MANIFEST
    return path.is_file() and (not manifest or hashlib.sha256(path.read_bytes()).hexdigest() == manifest)


def _fetch_all(target: Path, source: ArtifactSource, token: str, pause_s: float) -> None:
    from worker.artifact import ArtifactError, file_entry, read_manifest, sync  # noqa: PLC0415

    part = target.with_name(target.name + PART)
    part.mkdir(exist_ok=True)
    began = time.monotonic()
    with grpc.insecure_channel(source.address, options=(DIRECT,)) as channel:
        fetch = _Fetch(control_pb2_grpc.ControllerStub(channel), source, token, pause_s)  # type: ignore[no-untyped-call]
        (part / MANIFEST).unlink(missing_ok=True)
        fetch.file(MANIFEST, part / MANIFEST)
        if not _is_it(part, source.manifest):
            raise ArtifactError(
                f"{source.model}/{source.version}: its manifest at the controller is not the one that is served; "
                "artifacts are immutable: restore it, or package a new version"
            )
        files = read_manifest(part).files
        for name, entry in files.items():
            path = part / name
            path.parent.mkdir(parents=True, exist_ok=True)
            for again in (True, False):
                fetch.file(name, path)
                if file_entry(path) == entry:
                    break
                path.unlink()
                if not again:
                    raise ArtifactError(f"{source.model}/{source.version}: {name} came twice with another content")
    for stray in sorted(part.rglob("*")):
        if stray.is_file() and stray.relative_to(part).as_posix() not in {MANIFEST, *files}:
            stray.unlink()
    sync(part)  # what has its name is whole, also after the machine lost power
    os.rename(part, target)
    sync(target.parent, deep=False)
    logger.info("fetched %s/%d in %.1f s", source.model, source.version, time.monotonic() - began)


class _Fetch:
    def __init__(
        self, stub: control_pb2_grpc.ControllerStub, source: ArtifactSource, token: str, pause_s: float
    ) -> None:
        self._stub = stub
        self._pause_s = pause_s
        self._source = source
        self._metadata = (("authorization", f"Bearer {token}"),)

    def file(self, name: str, path: Path) -> None:
        """Appends to `path` what it lacks. Where others are being served, it waits for its turn: nothing broke off."""
        until = time.monotonic() + WITHIN_S
        broken_off = 0
        while True:
            try:
                self._rest_of(name, path)
                return
            except grpc.RpcError as error:
                code = error.code()
                if code is grpc.StatusCode.RESOURCE_EXHAUSTED and time.monotonic() < until:
                    time.sleep(self._pause_s)
                    continue
                if code is not grpc.StatusCode.UNAVAILABLE:
                    raise from_code(code.value[0], f"{name}: {error.details()}") from error
                broken_off += 1
                if broken_off == ATTEMPTS:
                    raise Unavailable(
                        f"{name} of {self._source.model}/{self._source.version} cannot be fetched from the controller "
                        f"at {self._source.address}: {error.details()}"
                    ) from error
                time.sleep(self._pause_s * 2.0 ** (broken_off - 1))

    def _rest_of(self, name: str, path: Path) -> None:
        have = path.stat().st_size if path.exists() else 0
        request = control_pb2.FetchFileRequest(
            model=self._source.model, version=self._source.version, path=name, offset=have
        )
        with path.open("ab") as file:
            for chunk in self._stub.FetchFile(request, timeout=FILE_WITHIN_S, metadata=self._metadata):
                file.write(chunk.data)
