"""Brings an artifact to this node: from the folder of models where the node has it, else from the controller.

What is fetched lands in a cache by the hash of its manifest, file by file, each checked against the manifest. A fetch
that breaks off goes on where it was. Several workers of one node fetch once.
"""

import fcntl
import hashlib
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grpc

from protos import control_pb2, control_pb2_grpc
from worker.errors import Unavailable, from_code

CACHE: Final = Path("~/.cache/shardline/artifacts")
ATTEMPTS: Final = 5
"""Times that a fetch may break off before it is given up."""
PAUSE_S: Final = 1.0
"""Before the second attempt; doubles from one to the next."""
WITHIN_S: Final = 3600.0
"""Longest that one file may take, or that a worker waits for its turn: for another one that fetches, or since the
controller hands out as many files as it can."""
MANIFEST: Final = "manifest.json"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ArtifactSource:
    """address: host:port of the controller. manifest: sha256 of the version's manifest; empty: any will do."""

    address: str
    model: str
    version: int
    manifest: str = ""
    cache: str = str(CACHE)


def local_artifact(folder: Path, source: ArtifactSource, token: str, pause_s: float = PAUSE_S) -> Path:
    """A folder on this node with the artifact: `folder` where that is it. Blocks while it fetches.

    `pause_s`: before the second attempt where the controller is away, and before each where it is busy.

    Raises `ArtifactError` where what comes is not what it should be, `Unavailable` where nothing comes, OSError where
    the cache cannot be written.
    """
    if _is_it(folder, source.manifest):
        return folder
    if not source.manifest:
        raise Unavailable(f"{folder}: not on this node, and what to fetch is not known; share the folder of models")
    cache = Path(source.cache).expanduser()
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    target = cache / source.manifest
    if not target.is_dir():
        with _alone(cache / f"{source.manifest}.lock"):
            if not target.is_dir():
                _fetch_all(target, source, token, pause_s)
    return target


def _is_it(folder: Path, manifest: str) -> bool:
    path = folder / MANIFEST
    return path.is_file() and (not manifest or hashlib.sha256(path.read_bytes()).hexdigest() == manifest)


def _fetch_all(target: Path, source: ArtifactSource, token: str, pause_s: float) -> None:
    from worker.artifact import ArtifactError, file_entry, read_manifest  # noqa: PLC0415 -- brings torch

    part = target.with_name(f"{target.name}.part")
    part.mkdir(exist_ok=True)
    began = time.monotonic()
    with grpc.insecure_channel(source.address) as channel:
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
    os.rename(part, target)
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
            for chunk in self._stub.FetchFile(request, timeout=WITHIN_S, metadata=self._metadata):
                file.write(chunk.data)


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """One worker of the node at a time; a process that dies lets go."""
    until = time.monotonic() + WITHIN_S
    with lock.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise Unavailable(f"{lock}: another worker fetches for over {WITHIN_S:g} s") from None
                time.sleep(0.1)
        yield
