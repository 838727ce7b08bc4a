"""What the workers of the first stage saw of each request: whether it was begun, or computed, more than once.

`Recorder` runs in the workers, where the handler calls it; the rest reads what it wrote. A request is known by the
number that it carries (see `tests.chaos.load`), so only the requests of one load may be looked at together.
"""

import os
import struct
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

FOLDER: Final = "SHARDLINE_CHAOS_SEEN"
"""Names the folder in the environment; nothing is recorded without it."""
BEGUN: Final = "begun"
COMPUTED: Final = "computed"


class Recorder:
    """Appends to a file of this process. What it writes is there when the process is killed in the next moment."""

    def __init__(self, what: str) -> None:
        folder = os.environ.get(FOLDER)
        path = Path(folder, f"{what}-{os.getpid()}") if folder else None
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600) if path else None

    def saw(self, number: int) -> None:
        if self._file is not None:
            os.write(self._file, struct.pack("<i", number))


@contextmanager
def recorded(folder: Path) -> Iterator[None]:
    """Workers whose Ray is started meanwhile record into `folder`, which is made."""
    folder.mkdir()
    os.environ[FOLDER] = str(folder)
    try:
        yield
    finally:
        del os.environ[FOLDER]


def folder() -> Path | None:
    """Of what is recorded now."""
    return Path(os.environ[FOLDER]) if FOLDER in os.environ else None


def sizes(where: Path | None) -> dict[str, int]:
    """How much each process has written so far."""
    return {path.name: path.stat().st_size for path in where.iterdir()} if where is not None else {}


def more_than_once(where: Path | None, what: str, since: Mapping[str, int]) -> int:
    """Requests that were seen more than once, by one process or several, after `sizes` gave `since`."""
    seen: Counter[int] = Counter()
    for path in where.glob(f"{what}-*") if where is not None else ():
        written = path.read_bytes()[since.get(path.name, 0) :]
        seen.update(number for (number,) in struct.iter_unpack("<i", written[: len(written) // 4 * 4]))
    return sum(times > 1 for times in seen.values())
