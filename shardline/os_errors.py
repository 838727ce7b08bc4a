"""What the operating system refused, for the person who typed the command: which file, why, and what to do."""

import errno
from collections.abc import Mapping
from typing import Final

_ROOM: Final = "make room there, and run the command again"
_PLACE: Final = "choose a place that you may write to, and run the command again"
_PATH: Final = "check the path, and run the command again"
_TO_DO: Final[Mapping[int | None, str]] = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), _ROOM),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), _PLACE),
    **dict.fromkeys((errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP), _PATH),
}


def told(error: OSError, where: str = "") -> str:
    """`where`: which file it was, if the error does not say."""
    place = error.filename2 or error.filename or where
    what = f"{place}: {error.strerror}" if place and error.strerror else str(error) or type(error).__name__
    return f"{what}; {_TO_DO[error.errno]}" if error.errno in _TO_DO else what
