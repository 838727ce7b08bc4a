"""File descriptors: how many this process may have, and how many of them connections of clients may take."""

import resource
from typing import Final

KEPT: Final = 256
"""For everything else: streams to replicas, the controller, files, listening."""
_MOST: Final = 1 << 20
"""Where the system says "without end"; some hosts make tables of that size."""


def raised() -> int:
    """Raises the soft limit to the hard one; what it is then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MOST if hard == resource.RLIM_INFINITY else min(hard, _MOST)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        return most
    return _MOST if soft == resource.RLIM_INFINITY else soft


def for_connections(wanted: int, descriptors: int) -> int:
    """Connections that may be open: `wanted`, but never so many that nothing is left for the replicas."""
    return max(1, min(wanted, descriptors - KEPT if descriptors > 2 * KEPT else descriptors // 2))
