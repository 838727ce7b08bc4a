"""What can go wrong with a request, split by whose fault it is.

    ShardlineError
    ├── InvalidRequest      the caller's: a tensor, name or parameter is not what the model takes
    ├── NotFound            the caller's: no such model or version
    ├── TooLarge            the caller's: over a size limit, it will never fit
    ├── Overloaded          nobody's: every queue that could hold it is full; try later
    ├── Unavailable         ours: no replica could take it
    ├── DeadlineExceeded    its time ran out
    ├── Cancelled           nobody waits for it any more
    ├── Unauthenticated     the caller does not hold the cluster's token
    ├── Unsupported         asked for something that this version does not do
    ├── Internal            ours: the shard failed on it
    └── DeviceFailed        ours: the processor failed on its batch; it is not tried again

Each carries a `google.rpc.Code`, which is also what a frame's reply carries.
"""

from typing import ClassVar


class ShardlineError(Exception):
    """An error that a caller may be told of. `confirmed`: several replicas failed so; another would not help."""

    code: ClassVar[int] = 2
    confirmed: bool = False


class InvalidRequest(ShardlineError):
    code = 3


class NotFound(ShardlineError):
    code = 5


class TooLarge(ShardlineError):
    code = 3


class Overloaded(ShardlineError):
    code = 8


class Unavailable(ShardlineError):
    code = 14


class DeadlineExceeded(ShardlineError):
    code = 4


class Cancelled(ShardlineError):
    code = 1


class Unauthenticated(ShardlineError):
    code = 16


class Unsupported(ShardlineError):
    code = 12


class Internal(ShardlineError):
    code = 13


class DeviceFailed(ShardlineError):
    """The processor failed on a batch, for whatever is in it: neither callers nor clients' libraries try again."""

    code = 10


_BY_CODE: dict[int, type[ShardlineError]] = {
    kind.code: kind
    for kind in (
        InvalidRequest,
        NotFound,
        Overloaded,
        Unavailable,
        DeadlineExceeded,
        Cancelled,
        Unauthenticated,
        Unsupported,
        Internal,
        DeviceFailed,
    )
}


def from_code(code: int, message: str, *, confirmed: bool = False) -> ShardlineError:
    """The error that a reply's code stands for; an unknown code is `Internal`."""
    error = _BY_CODE.get(code, Internal)(message)
    if confirmed:
        error.confirmed = True
    return error


def first_line(error: BaseException) -> str:
    """What an error of another library says, in a line; its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
