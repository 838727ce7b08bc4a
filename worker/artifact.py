"""An artifact on disk: one immutable version of a model. Loading checks every byte and runs nothing.

models/minilm/1/manifest.json   what everything is, and the hash of every other file
                program.pt2     the captured program
                stages/…        compiled packages, a cache
                handler/…       assets of the handler
                profile.json    what was measured of it, where it was; not listed, and replaced at will
"""

import errno
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from pydantic import ValidationError

from worker.errors import ShardlineError
from worker.manifest import FORMAT, MANIFEST, PROFILE, PROGRAM, FileEntry, Manifest

MAX_MANIFEST_BYTES: Final = 64 * 2**20

NOT_WRITTEN: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM})
"""`OSError.errno` of a disk that has no room, or that may not be written to."""

_VERSION: Final = re.compile(r"[1-9]\d{0,17}")
_TEMPORARY_PREFIX: Final = ".packaging-"
_LEFT_BEHIND_S: Final = 24 * 3600
"""Age of a temporary folder whose writer must have been killed, seconds."""


class ArtifactError(ShardlineError):
    """An artifact that cannot be trusted or read. The message names the file and says how to mend it."""

    code = 9


@dataclass(frozen=True, slots=True)
class Artifact:
    """A version's folder whose files are what its manifest says."""

    folder: Path
    manifest: Manifest

    @property
    def program(self) -> Path:
        return self.folder / PROGRAM

    @property
    def handler_assets(self) -> Path:
        return self.folder / "handler"


def load_artifact(folder: Path) -> Artifact:
    """The artifact in `folder` (models/minilm/1), after checking that each file is there, whole, and expected.

    Raises:
        ArtifactError: naming the file that is missing, damaged, unexpected, or of another format.
    """
    manifest = read_manifest(folder)
    listed = set(manifest.files)
    for name, entry in manifest.files.items():
        _check_file(folder, name, entry)
    for path in _files(folder):
        name = path.relative_to(folder).as_posix()
        if name not in listed and name not in (MANIFEST, PROFILE):
            raise ArtifactError(f"{path}: not named in {MANIFEST}; remove it, or package the model again")
    return Artifact(folder, manifest)


def read_manifest(folder: Path) -> Manifest:
    """The manifest alone, checked in itself but not against the files.

    Raises:
        ArtifactError: it is missing, damaged, or of another format.
    """
    path = folder / MANIFEST
    try:
        if path.is_symlink() or not path.is_file():
            raise ArtifactError(f"{path}: missing; {folder} is not an artifact (`shardline package` makes one)")
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            raise ArtifactError(f"{path}: over {MAX_MANIFEST_BYTES} bytes")
        document = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{path}: cannot be read: {error}; package the model again") from error
    version = document.get("format") if isinstance(document, dict) else None
    if version != FORMAT:
        raise ArtifactError(
            f"{path}: format {version!r}; this version of Shardline reads format {FORMAT}: "
            "upgrade Shardline, or package the model again with this version"
        )
    try:
        manifest = Manifest.model_validate_json(json.dumps(document), strict=False)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, problem['loc'])) or 'manifest'}: {problem['msg']}" for problem in error.errors()[:5]
        )
        raise ArtifactError(f"{path}: {problems}") from error
    for name in manifest.files:
        _check_name(path, name)
    return manifest


def _check_name(manifest: Path, name: str) -> None:
    pure = PurePosixPath(name)
    plain = name == pure.as_posix() and not pure.is_absolute() and ".." not in pure.parts and "\\" not in name
    allowed = name == PROGRAM or (len(pure.parts) > 1 and pure.parts[0] in {"stages", "handler"})
    if not plain or not allowed or "\0" in name:
        raise ArtifactError(f"{manifest}: files: {name!r} is not a path inside the artifact")


def _check_file(folder: Path, name: str, entry: FileEntry) -> None:
    path = folder / name
    for part in [path, *path.parents]:
        if part == folder:
            break
        if part.is_symlink():
            raise ArtifactError(f"{part}: a symbolic link; an artifact holds its files itself")
    try:
        status = path.stat()
    except OSError as error:
        raise ArtifactError(f"{path}: missing; restore it, or package the model again") from error
    if not stat.S_ISREG(status.st_mode):
        raise ArtifactError(f"{path}: not a plain file")
    if status.st_size != entry.bytes:
        raise ArtifactError(
            f"{path}: {status.st_size} bytes, the manifest says {entry.bytes}; restore it, or package the model again"
        )
    found = file_entry(path)
    if found.sha256 != entry.sha256:
        raise ArtifactError(f"{path}: its content is not what was packaged (sha256 differs); restore it")


def file_entry(path: Path) -> FileEntry:
    """Hash and size of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    return FileEntry(sha256=digest.hexdigest(), bytes=path.stat().st_size)


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not path.is_dir():
            yield path


def versions(model: Path) -> tuple[int, ...]:
    """The version numbers under a model's folder, ascending."""
    if not model.is_dir():
        return ()
    return tuple(sorted(int(path.name) for path in model.iterdir() if _VERSION.fullmatch(path.name) and path.is_dir()))


def list_files(folder: Path) -> dict[str, FileEntry]:
    """What the manifest's `files` must say of a folder that is about to become an artifact."""
    return {path.relative_to(folder).as_posix(): file_entry(path) for path in _files(folder) if path.name != MANIFEST}


@contextmanager
def _building(model: Path) -> Iterator[Path]:
    new = not model.exists()
    model.mkdir(parents=True, exist_ok=True)
    for left in model.glob(f"{_TEMPORARY_PREFIX}*"):
        if time.time() - left.stat().st_mtime > _LEFT_BEHIND_S:
            shutil.rmtree(left, ignore_errors=True)
    building = Path(tempfile.mkdtemp(prefix=_TEMPORARY_PREFIX, dir=model))
    try:
        yield building
    finally:
        shutil.rmtree(building, ignore_errors=True)
        if new and not any(model.iterdir()):
            model.rmdir()


def write_artifact(model: Path, fill: Callable[[Path], Manifest]) -> Path:
    """Writes the next version under `model`: all of it, or nothing.

    `fill` puts program, stages and handler into the folder that it is given (a temporary sibling) and returns the
    manifest, whose `files` is then replaced by what is really there.

    Returns:
        The version's folder, e.g. models/minilm/3.

    Raises:
        ArtifactError: it cannot be written, such as on a full disk.
    """
    try:
        return _write(model, fill)
    except OSError as error:
        raise ArtifactError(f"{model}: cannot be written: {error}; nothing was left behind") from error


def _write(model: Path, fill: Callable[[Path], Manifest]) -> Path:
    with _building(model) as building:
        manifest = fill(building)
        building.chmod(0o755)
        document = manifest.model_copy(update={"files": list_files(building)})
        (building / MANIFEST).write_text(document.model_dump_json(indent=1) + "\n", encoding="utf-8")
        read_manifest(building)
        sync(building)
        version = max(versions(model), default=0) + 1
        while True:
            target = model / str(version)
            try:
                # Renaming onto a folder that holds something fails, so two writers never share a number.
                building.rename(target)
                break
            except OSError:
                if not target.exists():
                    raise
                version += 1
        sync(model, deep=False)
    return target


def sync(folder: Path, *, deep: bool = True) -> None:
    """Returns when the folder is on the disk; `deep`: with all that is in it."""
    inside = [*_files(folder), *(path for path in folder.rglob("*") if path.is_dir())] if deep else []
    for path in [*inside, folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
