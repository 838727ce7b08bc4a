"""What the command's exit codes mean."""

from typing import ClassVar, Final

from worker.errors import ShardlineError

OK: Final = 0
FAILED: Final = 1
"""Standard error says why; `status`: some model is not ready."""
USAGE: Final = 2
"""The command line is wrong (argparse's own)."""
NOT_SERVING: Final = 3
NOTHING_FOUND: Final = 4
"""`tune`: nothing that keeps the budget beats the uncompressed model, which is what was written."""
FORCED: Final = 130
"""A second signal: what was in flight is lost."""


class NotServing(ShardlineError):
    """No living `serve` has the state dir."""

    exit_code: ClassVar[int] = NOT_SERVING
