"""Texts as the inputs of a model that is served as text: through its own handler, as a client's would be."""

import struct
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from compressor.model import Model
from worker.errors import InvalidRequest
from worker.handler import load_handler
from worker.nouns import BYTES, Tensor
from worker.program import DATATYPES

_LENGTH: Final = struct.Struct("<I")
_TYPES: Final = {name: dtype for dtype, name in DATATYPES.items()}


class TextInputs:
    """Encodes texts for `model`.

    Raises:
        InvalidRequest: the model is not served as text.
    """

    def __init__(self, model: Model) -> None:
        if model.handler is None:
            raise InvalidRequest(
                "the data are texts, and the model has no handler that takes text; give its inputs as numbers (.npz)"
            )
        with tempfile.TemporaryDirectory(prefix="shardline-text-") as folder:
            for name, asset in model.assets.items():
                Path(folder, name).write_bytes(asset if isinstance(asset, bytes) else asset.read_bytes())
            self._handler = load_handler(model.handler, Path(folder))
        takes = self._handler.signature.inputs
        if len(takes) != 1 or takes[0].datatype != BYTES:
            raise InvalidRequest(f"the handler {model.handler!r} does not take one input of texts")
        self._name = takes[0].name
        self._inputs = tuple(item.name for item in model.inputs)

    def encoded(self, texts: Sequence[str]) -> tuple[torch.Tensor, ...]:
        """The model's inputs for these texts, padded to the longest."""
        parts = [text.encode() for text in texts]
        data = b"".join(_LENGTH.pack(len(part)) + part for part in parts)
        made = {item.name: item for item in self._handler.before([Tensor(self._name, BYTES, (len(parts),), data)])}
        return tuple(
            torch.frombuffer(bytearray(made[name].data), dtype=_TYPES[made[name].datatype]).reshape(made[name].shape)
            for name in self._inputs
        )

    def batches(self, texts: Sequence[str], rows: int) -> Iterator[tuple[NDArray[np.int64], tuple[torch.Tensor, ...]]]:
        """(places of the texts, the model's inputs): texts of about one length together, so that little is padded."""
        order = np.argsort([len(text) for text in texts], kind="stable")
        for first in range(0, len(order), rows):
            places = order[first : first + rows]
            yield places, self.encoded([texts[place] for place in places])
