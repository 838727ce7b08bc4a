"""Hands out the files of the versions that are served, piece by piece, to nodes that do not have them."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import BinaryIO

from cluster.repository import artifact_folder
from worker.errors import InvalidRequest, NotFound, Overloaded

PIECE_BYTES = 1 << 20
MAX_OPEN = 16
MANIFEST = "manifest.json"


class ArtifactFiles:
    """Of the folder of models `repository`. Belongs to one event loop."""

    def __init__(self, repository: Path) -> None:
        self._repository = repository
        self._open = 0

    async def pieces(self, model: str, version: int, name: str, offset: int) -> AsyncIterator[bytes]:
        """The file's bytes from `offset` on.

        Raises NotFound where the version's manifest does not name the file, InvalidRequest where `offset` is beyond its
        end, Overloaded where many are being read.
        """
        if self._open >= MAX_OPEN:
            raise Overloaded(f"{MAX_OPEN} files are being fetched; try again later")
        self._open += 1
        try:
            with await asyncio.to_thread(self._opened, model, version, name, offset) as file:
                while piece := await asyncio.to_thread(file.read, PIECE_BYTES):
                    yield piece
        finally:
            self._open -= 1

    def _opened(self, model: str, version: int, name: str, offset: int) -> BinaryIO:
        folder = artifact_folder(self._repository, model, version)
        try:
            named = {MANIFEST, *json.loads((folder / MANIFEST).read_bytes())["files"]}
            path = folder / name
            if name not in named or not path.resolve().is_relative_to(folder.resolve()):
                raise NotFound(f"{model}/{version} has no file {name!r:.200}")
            file = path.open("rb")
        except OSError as error:
            raise NotFound(f"{model}/{version}: {name!r:.200} cannot be read: {error.strerror}") from error
        size = file.seek(0, 2)
        if offset > size:
            file.close()
            raise InvalidRequest(f"offset: {name} has {size} bytes, {offset} came; remove what was fetched of it")
        file.seek(offset)
        return file
