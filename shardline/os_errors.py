"""What the operating system refused, for the person who typed the command: which file, why, and what to do."""

import errno
from collections.abc import Mapping
from typing import Final

_ROOM: Final = "make room there, and run the command again"
_PLACE: Final = "choose a place that you may write to, and run the command again"
_PATH: Final = "check the path, and run the command again"
_TO_DO: Final[Mapping[int, str]] = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), _ROOM),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), _PLACE),
    **dict.fromkeys((errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP), _PATH),
}


def told(error: OSError, where: str = "") -> str:
    """`where`: which file it was, if the error does not say."""
    place = error.filename2 or error.filename or where
    what = f"{place}: {error.strerror}" if place and error.strerror else str(error) or type(error).__name__
    to_do = _TO_DO.get(error.errno or 0)
    return f"{what}; {to_do}" if to_do else what
