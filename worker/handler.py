"""Code of the operator's own that runs before the first stage and after the last: text in, vectors out.

A handler is a class that is installed, or that lies beside `model.yaml` (`worker.handler_code`), and is named there; a
client never sends one and an artifact never carries one, only the assets that it reads (a tokenizer).
"""

import importlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Protocol, runtime_checkable

from worker.errors import InvalidRequest, Unsupported
from worker.nouns import Signature, Tensor

_NAME: Final = re.compile(r"([A-Za-z_][\w.]*):([A-Za-z_]\w*)", re.ASCII)


@runtime_checkable
class Handler(Protocol):
    """Made as `cls(assets)` with the artifact's handler/ folder. Its methods are called from one thread at a time."""

    signature: Signature
    """What a client sends and gets, in place of the program's own inputs and outputs."""

    def before(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The program's inputs for a client's tensors. Raises `InvalidRequest` naming the tensor that is wrong."""
        ...

    def after(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """What the client gets for the program's outputs."""
        ...


def load_handler(name: str, assets: Path) -> Handler:
    """The handler named "module:Class", with its assets.

    Raises:
        InvalidRequest: the name is not of that form.
        Unsupported: it cannot be imported, or is not a handler.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise InvalidRequest(f"handler {name!r}: expected module:Class, such as worker.text:TextEmbedding")
    try:
        found = getattr(importlib.import_module(match[1]), match[2])
    except (ImportError, AttributeError) as error:
        raise Unsupported(
            f"handler {name!r}: {error}; install the package that holds it, or see handler_code"
        ) from error
    made = found(assets)
    if not isinstance(made, Handler):
        raise Unsupported(f"handler {name!r}: it has no signature, before and after (see worker/handler.py)")
    return made
