"""Hands out files of what is served, versions and handlers' code, piece by piece, to nodes that do not have them."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import BinaryIO

from worker.errors import InvalidRequest, NotFound, Overloaded

PIECE_BYTES = 1 << 20
MAX_OPEN = 16
MANIFEST = "manifest.json"


class ArtifactFiles:
    """Of folders with a manifest. Belongs to one event loop."""

    def __init__(self) -> None:
        self._open = 0

    async def pieces(self, folder: Path, what: str, name: str, offset: int) -> AsyncIterator[bytes]:
        """The bytes from `offset` on of a file in `folder`, which errors call `what`.

        Raises NotFound where the folder's manifest does not name the file, InvalidRequest where `offset` is beyond its
        end, Overloaded where many are being read.
        """
        if self._open >= MAX_OPEN:
            raise Overloaded(f"{MAX_OPEN} files are being fetched; try again later")
        self._open += 1
        try:
            with await asyncio.to_thread(self._opened, folder, what, name, offset) as file:
                while piece := await asyncio.to_thread(file.read, PIECE_BYTES):
                    yield piece
        finally:
            self._open -= 1

    def _opened(self, folder: Path, what: str, name: str, offset: int) -> BinaryIO:
        try:
            named = {MANIFEST, *json.loads((folder / MANIFEST).read_bytes())["files"]}
            path = folder / name
            if name not in named or not path.resolve().is_relative_to(folder.resolve()):
                raise NotFound(f"{what} has no file {name!r:.200}")
            file = path.open("rb")
        except OSError as error:
            raise NotFound(f"{what}: {name!r:.200} cannot be read: {error.strerror}") from error
        size = file.seek(0, 2)
        if offset > size:
            file.close()
            raise InvalidRequest(f"offset: {name} has {size} bytes, {offset} came; remove what was fetched of it")
        file.seek(offset)
        return file
