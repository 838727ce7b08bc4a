"""The code of an operator's handler: a folder beside `model.yaml`, known by a hash of its files, imported from there.

What a node uses is that folder where the node has it, else a copy: `code/` with the files, and a manifest with the hash
of each. Names that begin with a dot, and `__pycache__`, are no part of it. Needs neither torch nor Ray.
"""

import errno
import hashlib
import importlib.util
import json
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.machinery import FileFinder, SourceFileLoader
from pathlib import Path, PurePosixPath
from typing import Any, Final, Never

from worker.errors import ShardlineError, Unsupported

MAX_FILES: Final = 1000
MAX_FILE_BYTES: Final = 4 * 2**20
MAX_BYTES: Final = 16 * 2**20
MANIFEST: Final = "manifest.json"
FOLDER: Final = "code"
_COMPILED: Final = (".so", ".pyd", ".dll", ".pyc", ".pyo")


class HandlerCodeError(ShardlineError):
    """A folder of code that cannot be used as it is. The message names what is wrong and says how to mend it."""

    code = 9


def code_hash(model: Path, name: str) -> str:
    """By which the code in the folder `name` of the model's folder is known: the sha256 of its copy's manifest.

    Raises HandlerCodeError where it is missing, leads elsewhere, or is not a bounded folder of sources and data.
    """
    return folder_hash(_inside(model, name))


def folder_hash(folder: Path) -> str:
    """As `code_hash`, of the code in `folder`."""
    return _hash(_manifest(_listed(folder)))


def keep_code(model: Path, name: str, sha256: str, kept: Path) -> None:
    """Copies the code to `kept`/`sha256`, all of it or nothing, unless it is there.

    Raises HandlerCodeError where it is not the code of that hash any more, OSError where it cannot be written.
    """
    target = kept / sha256
    if target.is_dir():
        with suppress(HandlerCodeError):
            kept_code(target)
            return
    kept.mkdir(mode=0o700, parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=".", dir=kept))
    try:
        files = _read(_inside(model, name))
        manifest = _manifest({file: hashlib.sha256(data).hexdigest() for file, data in files.items()})
        if _hash(manifest) != sha256:
            raise HandlerCodeError(
                f"handler_code: {model / name} is no longer as it was when it was taken; `shardline rollout "
                f"{model.name}` takes it as it is now"
            )
        for file, data in files.items():
            path = building / FOLDER / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        (building / MANIFEST).write_bytes(manifest)
        _put(building, target)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _read(folder: Path) -> dict[str, bytes]:
    """The content of each file that belongs to the code. Raises HandlerCodeError."""
    files: dict[str, bytes] = {}
    try:
        for name in _listed(folder):
            with (folder / name).open("rb") as file:
                files[name] = file.read(MAX_FILE_BYTES)
    except OSError as error:
        raise HandlerCodeError(
            f"handler_code: {error.filename or folder}: cannot be read: {error.strerror}; let user {os.getuid()} read "
            "it, and try again where it was just being changed"
        ) from error
    return files


def _put(building: Path, target: Path) -> None:
    """In the place of a damaged copy, if there is one. Another controller may have made the same one meanwhile."""
    try:
        building.rename(target)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
        with suppress(HandlerCodeError):
            kept_code(target)
            return
        shutil.rmtree(target)
        building.rename(target)


def kept_code(folder: Path) -> Path:
    """Of a copy, the folder to import from, after checking that each file is there, whole, and expected.

    Raises HandlerCodeError.
    """
    try:
        whole = _named(_listed(folder / FOLDER)) == kept_files(folder)
    except OSError as error:
        raise HandlerCodeError(f"{folder}: cannot be read: {error}") from error
    if not whole:
        raise HandlerCodeError(f"{folder}: its files are not what its manifest says")
    return folder / FOLDER


def kept_files(folder: Path) -> dict[str, str]:
    """What a copy's manifest says: the sha256 of each file, by its path in it. Raises HandlerCodeError, OSError."""
    path = folder / MANIFEST
    try:
        files = {PurePosixPath(name): str(sha256) for name, sha256 in json.loads(path.read_bytes())["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise HandlerCodeError(f"{path}: not the manifest of a handler's code") from error
    if any(len(name.parts) < 2 or name.parts[0] != FOLDER or ".." in name.parts for name in files):
        raise HandlerCodeError(f"{path}: names a file outside of {FOLDER}/")
    return {name.as_posix(): sha256 for name, sha256 in files.items()}


def _named(files: Mapping[str, str]) -> dict[str, str]:
    """As in a copy."""
    return {f"{FOLDER}/{name}": files[name] for name in sorted(files)}


def _inside(model: Path, name: str) -> Path:
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or not pure.parts:
        raise HandlerCodeError(f"handler_code: expected a folder inside of {model}, got {name!r}; move it there")
    folder = model / pure
    for one in (folder, *folder.parents[: len(pure.parts) - 1]):
        if one.is_symlink():
            raise HandlerCodeError(f"handler_code: expected a folder inside of {model}, got the link {one}; copy it")
    if not folder.is_dir():
        raise HandlerCodeError(
            f"handler_code: expected the folder {folder} with the handler's module, got "
            f"{'a file' if folder.exists() else 'nothing'}; put the code there, or set handler_code: null where the "
            "handler is installed on every node"
        )
    return folder


def _listed(folder: Path) -> dict[str, str]:
    """The sha256 of each file that belongs to the code, by its path in `folder`."""
    files: dict[str, str] = {}
    total = 0

    def refuse(error: OSError) -> Never:
        raise error

    for base, folders, names in os.walk(folder, onerror=refuse):
        if base != str(folder):
            _refuse_name(Path(base))
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__pycache__")
        for name in sorted([*names, *(one for one in folders if os.path.islink(os.path.join(base, one)))]):
            if name.startswith("."):
                continue
            path = Path(base) / name
            total += _bytes(path)
            if len(files) == MAX_FILES:
                raise HandlerCodeError(f"handler_code: {folder}: expected up to {MAX_FILES} files, got more{_ASSETS}")
            if total > MAX_BYTES:
                raise HandlerCodeError(f"handler_code: {folder}: expected up to {MAX_BYTES} bytes, got more{_ASSETS}")
            with path.open("rb") as file:
                files[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return files


_ASSETS: Final = "; what is large belongs into the artifact's handler/, where the handler finds it as its assets"


def _bytes(path: Path) -> int:
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode):
        what = "a link" if stat.S_ISLNK(status.st_mode) else "a special file"
        raise HandlerCodeError(f"handler_code: {path}: expected a plain file, got {what}; put a copy in its place")
    _refuse_name(path)
    if path.name.endswith(_COMPILED):
        raise HandlerCodeError(
            f"handler_code: {path}: expected .py and data files, got compiled code; install its package on every node"
        )
    if status.st_size > MAX_FILE_BYTES:
        raise HandlerCodeError(
            f"handler_code: {path}: expected up to {MAX_FILE_BYTES} bytes, got {status.st_size}{_ASSETS}"
        )
    return status.st_size


def _refuse_name(path: Path) -> None:
    if not path.name.isprintable() or "\\" in path.name:
        raise HandlerCodeError(f"handler_code: {str(path)!r}: expected a printable name; rename it")


def _manifest(files: Mapping[str, str]) -> bytes:
    return json.dumps({"files": _named(files)}, indent=1).encode()


def _hash(manifest: bytes) -> str:
    return hashlib.sha256(manifest).hexdigest()


@contextmanager
def importable(folder: Path, handler: str) -> Iterator[None]:
    """Meanwhile the modules in `folder` can be imported, the one of `handler` ("module:Class") among them.

    Their sources alone count, whatever was compiled beside them. They are forgotten in the end, so that another model's
    may have the same names. Raises Unsupported where the handler's module is not there, or where one of them has the
    name of a module that is there without them.
    """
    modules = _modules(folder)
    wanted = handler.partition(":")[0]
    place = folder.joinpath(*wanted.split("."))
    there = place.with_name(f"{place.name}.py").is_file() or (place / "__init__.py").is_file()
    if wanted.partition(".")[0] not in modules or not there:
        raise Unsupported(
            f"handler {handler!r}: expected its module {wanted} in {folder}, got {', '.join(sorted(modules)) or 'none'}"
            "; put it there, or set handler_code: null where it is installed on every node"
        )
    for module in sorted(modules):
        _refuse_taken(folder, module)

    def of_folder(path: str) -> FileFinder:
        if not Path(path).is_relative_to(folder):
            raise ImportError(path)
        return FileFinder(path, (_Sources, [".py"]))

    sys.path_hooks.insert(0, of_folder)
    sys.path.append(str(folder))
    _forget(folder, modules)
    try:
        yield
    finally:
        sys.path_hooks.remove(of_folder)
        sys.path.remove(str(folder))
        _forget(folder, modules)


class _Sources(SourceFileLoader):
    def path_stats(self, path: str) -> Any:
        """Without them, nothing compiled is read or written."""
        raise OSError(f"{path}: only its source is used")


def _modules(folder: Path) -> set[str]:
    """That can be imported by one name."""
    found = (one.stem if one.suffix == ".py" else one.name for one in folder.iterdir() if _has_code(one))
    return {name for name in found if name.isidentifier() and not name.startswith("__")}


def _has_code(path: Path) -> bool:
    return path.suffix == ".py" if path.is_file() else path.is_dir() and next(path.rglob("*.py"), None) is not None


def _refuse_taken(folder: Path, module: str) -> None:
    try:
        spec = importlib.util.find_spec(module)
    except ValueError:  # one that was imported without
        where = "a module of this process"
    else:
        if spec is None:
            return
        places = list(spec.submodule_search_locations or ())
        mere_folder = spec.origin is None and bool(places)
        if mere_folder and ((folder / f"{module}.py").is_file() or (folder / module / "__init__.py").is_file()):
            return  # ours comes first
        where = spec.origin or (places[0] if places else "a module of Python's own")
        if Path(where).is_relative_to(folder):
            return
    raise Unsupported(
        f"handler_code: {folder}: expected modules with names of their own, got {module}, which is also {where}; "
        "rename it, also in `handler`"
    )


def _forget(folder: Path, modules: set[str]) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] in modules]:
        del sys.modules[name]
    for path in [path for path in sys.path_importer_cache if Path(path).is_relative_to(folder)]:
        del sys.path_importer_cache[path]
