"""The token of the Ray clusters that this process starts."""

import secrets
from functools import cache


@cache
def ray_token() -> str:
    """One for the process's whole life: Ray keeps to the first that it reads, also in the next cluster."""
    return secrets.token_hex(32)
