"""The records of a program file: stored zip entries with known names, and weights that stay in the file.

Knows nothing of graphs. Entries of other names, compressed ones, and ones that reach past the end of the file are
refused, so what is read is never more than what is on the disk.
"""

import json
import mmap
import re
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Final

import torch

from worker.errors import ShardlineError

MAX_GRAPH_BYTES: Final = 256 * 2**20
MAX_ENTRIES: Final = 100_000

_PLAIN_ENTRIES: Final = frozenset(
    {"archive_format", "archive_version", "byteorder", ".data/version", ".data/serialization_id", "version"}
)
_ENTRY: Final = re.compile(
    r"models/model\.json|data/weights/(model_weights_config\.json|weight_\d+)"
    r"|data/constants/(model_constants_config\.json|tensor_\d+)|data/sample_inputs/model\.pt"
)
_LOCAL_HEADER: Final = struct.Struct("<4s5H3I2H")


class ProgramError(ShardlineError):
    """A program file that cannot be read, or that holds something that a program may not."""

    code = 3


class Archive:
    """The records of the archive at `path`, mapped private to this process.

    Raises:
        ProgramError: it is damaged, or is not a captured program's archive.
    """

    def __init__(self, path: Path) -> None:
        try:
            with zipfile.ZipFile(path) as archive, path.open("rb") as file:
                self._records = _records(archive, file)
                self._mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except (zipfile.BadZipFile, EOFError, OSError, struct.error, ValueError, NotImplementedError) as error:
            raise ProgramError(f"not a readable .pt2 archive: {error}") from error
        if self.text("archive_format") != "pt2" or self.text("archive_version") not in {"0", "1"}:
            raise ProgramError("not a .pt2 archive of a version that is known here")
        if self.text("byteorder") != "little":
            raise ProgramError("the weights are not little-endian")

    def text(self, name: str) -> str:
        return self._bytes(name, 64).decode("utf-8", "replace").strip()

    def json(self, name: str) -> Any:
        try:
            return json.loads(self._bytes(name, MAX_GRAPH_BYTES))
        except (ValueError, RecursionError) as error:
            raise ProgramError(f"the entry {name!r} is not JSON: {error}") from error

    def tensor(
        self, name: str, dtype: torch.dtype, shape: tuple[int, ...], strides: tuple[int, ...], offset: int
    ) -> torch.Tensor:
        """A view of a record's bytes; sizes, strides and offset are in elements.

        Raises:
            ProgramError: there is no such record, or the view would reach beyond it.
        """
        if name not in self._records:
            raise ProgramError(f"the archive has no {name[:120]!r}")
        place, length = self._records[name]
        if len(shape) != len(strides) or min((*shape, *strides, offset)) < 0:
            raise ProgramError(f"the tensor in {name!r} has no fixed shape")
        elements, last = 1, offset
        for size, stride in zip(shape, strides, strict=True):
            elements *= size
            last += (size - 1) * stride
        if elements == 0:
            return torch.empty(shape, dtype=dtype)
        held = length // dtype.itemsize
        if last >= held or elements > held:
            raise ProgramError(f"the tensor in {name!r} needs more than the {length} bytes that are there")
        return torch.frombuffer(self._mapped, dtype=dtype, count=held, offset=place).as_strided(shape, strides, offset)

    def _bytes(self, name: str, most: int) -> bytes:
        if name not in self._records:
            raise ProgramError(f"the archive has no {name!r}")
        offset, length = self._records[name]
        if length > most:
            raise ProgramError(f"the entry {name!r} is {length} bytes; at most {most} are read")
        return self._mapped[offset : offset + length]


def _records(archive: zipfile.ZipFile, file: IO[bytes]) -> Mapping[str, tuple[int, int]]:
    """Each entry's place in the file: (offset, bytes)."""
    entries = archive.infolist()
    if not 0 < len(entries) <= MAX_ENTRIES:
        raise ProgramError(f"{len(entries)} entries in the archive; expected 1 to {MAX_ENTRIES}")
    end = file.seek(0, 2)
    root = entries[0].filename.split("/", 1)[0]
    records: dict[str, tuple[int, int]] = {}
    for entry in entries:
        folder, _, name = entry.filename.partition("/")
        if folder != root or not (name in _PLAIN_ENTRIES or _ENTRY.fullmatch(name)):
            raise ProgramError(f"unknown entry {entry.filename[:120]!r}; only a captured program is read")
        if name in records:
            raise ProgramError(f"the archive holds {name!r} twice")
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
            raise ProgramError(f"the entry {name!r} is compressed; torch.export stores entries as they are")
        file.seek(entry.header_offset)
        header = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
        if header[0] != b"PK\x03\x04":
            raise ProgramError(f"the entry {name!r} has no header where the archive says")
        offset = entry.header_offset + _LOCAL_HEADER.size + header[9] + header[10]
        if offset + entry.file_size > end:
            raise ProgramError(f"the entry {name!r} reaches past the end of the file")
        records[name] = (offset, entry.file_size)
    return records
