"""A worker's event loop stands behind its compute thread where both want the same core."""

import os
import sys
import threading
from typing import Final

WORKER: Final = 5
"""Of workers in an embedded Ray; gateways have none. Ray itself would give them 15, which leaves little room above."""
BEHIND: Final = 10
"""Steps of niceness: Linux gives a thread about a tenth of the core that it gives to one without them."""
MOST: Final = 19


def stand_behind() -> None:
    """Makes the calling thread nicer, and those that it starts from now on. What computes must have been started.

    A loop that wakes up on the core where a batch is computed would take it at once, as it has used it less, and the
    batch would wait with cold caches; what it has to do can wait for the end of a slice. On systems where threads have
    no niceness of their own nothing is done.
    """
    if sys.platform == "linux":
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, min(MOST, os.getpriority(os.PRIO_PROCESS, thread) + BEHIND))
