"""Ends a process when its parent does (Linux)."""

import ctypes
import os
import signal
from typing import Final

_PR_SET_PDEATHSIG: Final = 1


def die_with_parent(parent: int) -> None:
    """Has the kernel send this process SIGHUP when `parent` ends, however it ends; at once where it has already.

    The kernel means the thread that started this process: start it from one that lives on. Raises OSError where the
    kernel refuses.
    """
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # inherited from `nohup`, which means a terminal's end
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGHUP, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGHUP)
