"""Brings an artifact to this node: from the folder of models where the node has it, else from the controller.

So it does with the code of the model's handler. What is fetched lands in a cache by the hash of its manifest, file by
file, each checked against the manifest. A fetch that breaks off goes on where it was. Several workers of one node fetch
once. What is damaged later is fetched again.
"""

import hashlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Generic, TypeVar

import grpc

from protos import control_pb2, control_pb2_grpc
from worker.artifact_cache import KEPT_BYTES, PART, WITHIN_S, ArtifactCache
from worker.channel import DIRECT
from worker.errors import ShardlineError, Unavailable, from_code
from worker.handler_code import HandlerCodeError, code_hash, folder_hash, kept_code, kept_files

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

T = TypeVar("T")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ArtifactSource:
    """address: host:port of the controller. manifest: sha256 of the version's manifest; empty: any will do.

    keep_bytes: of what was fetched to the node; beyond, what no worker uses is removed. code: `code_hash` of the
    handler's code; empty: any will do.
    """

    address: str
    model: str
    version: int
    manifest: str = ""
    cache: str = str(CACHE)
    keep_bytes: int = KEPT_BYTES
    code: str = ""


@dataclass(frozen=True, slots=True)
class LocalArtifact:
    """An artifact on this node. While `hold` is open, nobody removes it to make room."""

    artifact: "Artifact"
    hold: ExitStack = field(default_factory=ExitStack)


@dataclass(frozen=True, slots=True)
class LocalCode:
    """A folder of this node to import a handler from. While `hold` is open, nobody removes it to make room.

    sha256: `folder_hash` that it had, where it is the operator's own, which may change at any time; else empty.
    """

    folder: Path
    sha256: str = ""
    hold: ExitStack = field(default_factory=ExitStack)

    def refuse_changed(self) -> None:
        """To be asked once the handler is imported: what was, may be partly newer. Raises HandlerCodeError."""
        if self.sha256 and folder_hash(self.folder) != self.sha256:
            raise HandlerCodeError(
                f"handler_code: {self.folder} changed while it was imported; the worker that is started in this one's "
                "place fetches it as it was"
            )


@dataclass(frozen=True, slots=True)
class _Wanted(Generic[T]):
    """What to fetch. name: for people. sha256: of its manifest. code: whether it is a handler's.

    files: those that the manifest in a folder names, with their sha256. load: what a folder holds, checked; raises a
    ShardlineError where it is damaged. mend: what to do where the controller has another one.
    """

    name: str
    sha256: str
    code: bool
    files: Callable[[Path], Mapping[str, str]]
    load: Callable[[Path], T]
    mend: str


def local_artifact(folder: Path, source: ArtifactSource, token: str, pause_s: float = PAUSE_S) -> LocalArtifact:
    """The artifact: in `folder` where that is it, else in the cache. Blocks while it fetches.

    `pause_s`: before the second attempt where the controller is away, and before each where it is busy.

    Raises `ArtifactError` where what comes is not what it should be, `Unavailable` where nothing comes, OSError where
    the cache cannot be written.
    """
    from worker.artifact import load_artifact, read_manifest  # noqa: PLC0415 -- brings torch

    if _is_it(folder, source.manifest):
        return LocalArtifact(load_artifact(folder))
    if not source.manifest:
        raise Unavailable(f"{folder}: not on this node, and what to fetch is not known; share the folder of models")
    wanted = _Wanted(
        f"{source.model}/{source.version}",
        source.manifest,
        code=False,
        files=lambda part: {name: entry.sha256 for name, entry in read_manifest(part).files.items()},
        load=load_artifact,
        mend="artifacts are immutable: restore it, or package a new version",
    )
    with ExitStack() as hold:
        artifact = _cached(wanted, source, token, pause_s, hold)
        return LocalArtifact(artifact, hold.pop_all())


def local_code(
    model: Path, name: str, source: ArtifactSource | None, token: str, pause_s: float = PAUSE_S
) -> LocalCode:
    """The handler's code: in the folder `name` of the model's folder where that is it, else in the cache.

    Without a hash in `source`, it is whatever is there. Blocks, and raises, as `local_artifact` does; HandlerCodeError
    too.
    """
    if source is None or not source.code:
        code_hash(model, name)
        return LocalCode(model / name)
    with suppress(ShardlineError, OSError):
        if code_hash(model, name) == source.code:
            return LocalCode(model / name, source.code)
    wanted = _Wanted(
        f"the code of {source.model}'s handler",
        source.code,
        code=True,
        files=kept_files,
        load=kept_code,
        mend=f"`shardline rollout {source.model}` takes it as it is now",
    )
    with ExitStack() as hold:
        folder = _cached(wanted, source, token, pause_s, hold)
        return LocalCode(folder, hold=hold.pop_all())


def _cached(wanted: _Wanted[T], source: ArtifactSource, token: str, pause_s: float, hold: ExitStack) -> T:
    """From the cache, where it is fetched to first. `hold` keeps it there."""
    cache = ArtifactCache(Path(source.cache).expanduser())
    target = cache.place(wanted.sha256)
    with cache.alone(wanted.sha256):
        hold.enter_context(cache.used(wanted.sha256))
        if not target.is_dir():
            _fetch_all(target, wanted, source, token, pause_s)
            cache.prune(source.keep_bytes)
    try:
        return wanted.load(target)
    except (ShardlineError, FileNotFoundError) as error:  # gone: another worker of this node replaces it just now
        logger.warning("%s: it is fetched once more", error)
        with cache.alone(wanted.sha256):
            return _mended(target, wanted, source, token, pause_s)


def _mended(target: Path, wanted: _Wanted[T], source: ArtifactSource, token: str, pause_s: float) -> T:
    """What is in `target`, fetched once more where another worker has not done so already."""
    try:
        return wanted.load(target)
    except ShardlineError:
        shutil.rmtree(target)
        _fetch_all(target, wanted, source, token, pause_s)
        return wanted.load(target)


def _is_it(folder: Path, manifest: str) -> bool:
    path = folder / MANIFEST
    return path.is_file() and (not manifest or hashlib.sha256(path.read_bytes()).hexdigest() == manifest)


def _fetch_all(target: Path, wanted: _Wanted[T], source: ArtifactSource, token: str, pause_s: float) -> None:
    from worker.artifact import ArtifactError, sync  # noqa: PLC0415

    part = target.with_name(target.name + PART)
    part.mkdir(exist_ok=True)
    began = time.monotonic()
    with grpc.insecure_channel(source.address, options=(DIRECT,)) as channel:
        stub = control_pb2_grpc.ControllerStub(channel)  # type: ignore[no-untyped-call]
        fetch = _Fetch(stub, source, token, pause_s, code=wanted.code, what=wanted.name)
        (part / MANIFEST).unlink(missing_ok=True)
        fetch.file(MANIFEST, part / MANIFEST)
        if not _is_it(part, wanted.sha256):
            raise ArtifactError(
                f"{wanted.name}: its manifest at the controller is not the one that is served; {wanted.mend}"
            )
        files = wanted.files(part)
        for name, sha256 in files.items():
            path = part / name
            path.parent.mkdir(parents=True, exist_ok=True)
            for again in (True, False):
                fetch.file(name, path)
                if _sha256(path) == sha256:
                    break
                path.unlink()
                if not again:
                    raise ArtifactError(f"{wanted.name}: {name} came twice with another content")
    for stray in sorted(part.rglob("*")):
        if stray.is_file() and stray.relative_to(part).as_posix() not in {MANIFEST, *files}:
            stray.unlink()
    sync(part)  # what has its name is whole, also after the machine lost power
    os.rename(part, target)
    sync(target.parent, deep=False)
    logger.info("fetched %s in %.1f s", wanted.name, time.monotonic() - began)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _Fetch:
    """`what` is fetched, which is the code of the model's handler or its version."""

    def __init__(
        self,
        stub: control_pb2_grpc.ControllerStub,
        source: ArtifactSource,
        token: str,
        pause_s: float,
        *,
        code: bool,
        what: str,
    ) -> None:
        self._stub = stub
        self._pause_s = pause_s
        self._source = source
        self._code = source.code if code else ""
        self._what = what
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
                        f"{name} of {self._what} cannot be fetched from the controller at {self._source.address}: "
                        f"{error.details()}"
                    ) from error
                time.sleep(self._pause_s * 2.0 ** (broken_off - 1))

    def _rest_of(self, name: str, path: Path) -> None:
        have = path.stat().st_size if path.exists() else 0
        request = control_pb2.FetchFileRequest(
            model=self._source.model, version=self._source.version, path=name, offset=have, code=self._code
        )
        with path.open("ab") as file:
            for chunk in self._stub.FetchFile(request, timeout=FILE_WITHIN_S, metadata=self._metadata):
                file.write(chunk.data)
