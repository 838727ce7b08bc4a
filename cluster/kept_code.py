"""The code of handlers as it was when it came to be served, since its folder may change meanwhile: copies.

A worker that starts later, of a revision that serves or of one that is rolled back to, gets the code of its revision.
"""

import logging
import os
import shutil
import time
from pathlib import Path
from typing import Final

from cluster.state import ServedModel, State, writing
from worker.errors import ShardlineError
from worker.handler_code import keep_code

FORGET_AFTER_S: Final = 600.0
"""So long a copy stays after it was last asked for: whoever did, such as a controller that took over from this one, may
have yet to store that it serves.
"""

logger = logging.getLogger(__name__)


class KeptCode:
    """In `folder`, by its hash, copied out of the folder of models `repository`."""

    def __init__(self, folder: Path, repository: Path) -> None:
        self._folder = folder
        self._repository = repository

    def place(self, code: str) -> Path:
        """Where the copy of that hash is, if there is one."""
        return self._folder / code

    def keep(self, model: str, served: ServedModel) -> None:
        """Raises HandlerCodeError where the folder changed meanwhile, StateError where no copy can be written."""
        if served.code and served.config.handler_code:
            with writing(self._folder):
                keep_code(self._repository / model, served.config.handler_code, served.code, self._folder)
                os.utime(self.place(served.code))

    def keep_all(self, state: State) -> None:
        """What serves by `state`, as far as it can be kept: nodes that have a copy do without."""
        for (model, _), served in state.served.items():
            try:
                self.keep(model, served)
            except ShardlineError as error:
                logger.warning("new workers of %s may lack their handler's code: %s", model, error)

    def forget_others(self, state: State) -> None:
        """Removes what neither serves by `state` nor did by its history, and was not asked for lately."""
        known = {served.code for served in state.served.values()} | {entry.served.code for entry in state.history}
        try:
            for copy in self._folder.iterdir() if self._folder.is_dir() else ():
                if copy.name not in known and time.time() - copy.stat().st_mtime > FORGET_AFTER_S:
                    shutil.rmtree(copy, ignore_errors=True)
        except OSError as error:
            logger.warning("copies of handlers' code that serve no longer stay: %s", error)
