"""The results of trials on disk, one JSON file each: what was measured once is not measured again."""

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

FORMAT: Final = 1
Result = dict[str, Any]


def key_of(told: Any) -> str:
    """A name for what decides a result: the hash of its JSON."""
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:32]


class Store:
    """Results by key, in `folder`/trials; `folder`/files holds what results name: compiled packages, arrays."""

    def __init__(self, folder: Path) -> None:
        self._trials = folder / "trials"
        self.files = folder / "files"
        self._trials.mkdir(parents=True, exist_ok=True)
        self.files.mkdir(exist_ok=True)

    def __len__(self) -> int:
        return sum(1 for _ in self._trials.glob("*.json"))

    def get(self, key: str) -> Result | None:
        """The result; None where there is none, where it is damaged, or where a file that it names is gone."""
        try:
            document = json.loads((self._trials / f"{key}.json").read_bytes())
        except (OSError, ValueError):
            return None
        if not isinstance(document, dict) or document.get("format") != FORMAT or document.get("key") != key:
            return None
        result = document.get("result")
        if not isinstance(result, dict):
            return None
        file = result.get("file")
        if file is not None and not (isinstance(file, str) and (self.files / Path(file).name).is_file()):
            return None
        return result

    def put(self, key: str, result: Mapping[str, Any]) -> None:
        """Writes it whole or not at all. Raises OSError: there is no room, or the folder cannot be written."""
        content = json.dumps({"format": FORMAT, "key": key, "result": dict(result)}, allow_nan=False)
        handle, name = tempfile.mkstemp(prefix=".writing-", dir=self._trials)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(content)
            Path(name).replace(self._trials / f"{key}.json")
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
