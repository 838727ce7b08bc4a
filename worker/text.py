"""Text in, one vector a text out: the handler of sentence encoders.

Assets: `tokenizer.json` (of the `tokenizers` library) and `text.json` (see `TextSettings`).
"""

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from tokenizers import Tokenizer

from worker.errors import InvalidRequest, ShardlineError
from worker.nouns import BATCH, BYTES, Signature, Tensor, TensorSpec

TEXT: Final = "text"
EMBEDDING: Final = "embedding"

_LENGTH: Final = struct.Struct("<I")


class TextSettings(BaseModel):
    """max_length: tokens of one text; longer ones are cut. dimension: numbers of one vector."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_length: Annotated[int, Field(ge=2)]
    dimension: Annotated[int, Field(ge=1)]
    pad_id: Annotated[int, Field(ge=0)] = 0


class AssetError(ShardlineError):
    """The handler's folder does not hold what the handler needs."""

    code = 9


class TextEmbedding:
    """text BYTES [batch], UTF-8 → input_ids, attention_mask → embedding FP32 [batch, dimension]."""

    def __init__(self, assets: Path) -> None:
        try:
            self._settings = TextSettings.model_validate_json((assets / "text.json").read_bytes())
            self._tokenizer = Tokenizer.from_file(str(assets / "tokenizer.json"))
        except (OSError, ValidationError) as error:
            raise AssetError(f"{assets}: text.json or tokenizer.json cannot be read: {error}") from error
        except Exception as error:  # the tokenizers library raises plain Exception
            raise AssetError(f"{assets / 'tokenizer.json'}: not a tokenizer: {error}") from error
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(self._settings.max_length)
        self.signature: Signature = Signature(
            inputs=(TensorSpec(TEXT, BYTES, (BATCH,)),),
            outputs=(TensorSpec(EMBEDDING, "FP32", (BATCH, self._settings.dimension)),),
        )

    def before(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Tokens of each text, padded to the longest. Raises `InvalidRequest` naming the tensor."""
        texts = read_texts(_only(tensors, TEXT))
        encoded = self._tokenizer.encode_batch_fast(texts) if len(texts) > 1 else [self._tokenizer.encode(texts[0])]
        longest = max(1, *(len(one.ids) for one in encoded))
        ids = np.full((len(texts), longest), self._settings.pad_id, dtype="<i8")
        mask = np.zeros((len(texts), longest), dtype="<i8")
        for row, one in enumerate(encoded):
            ids[row, : len(one.ids)] = one.ids
            mask[row, : len(one.ids)] = 1
        return (
            Tensor("input_ids", "INT64", ids.shape, ids.data.cast("B")),
            Tensor("attention_mask", "INT64", mask.shape, mask.data.cast("B")),
        )

    def after(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The program's `embedding`, as it is."""
        return (_only(tensors, EMBEDDING),)


def _only(tensors: Sequence[Tensor], name: str) -> Tensor:
    if len(tensors) != 1 or tensors[0].name != name:
        found = ", ".join(repr(tensor.name) for tensor in tensors) or "none"
        raise InvalidRequest(f"expected the one tensor {name!r}, got {found}")
    return tensors[0]


def read_texts(tensor: Tensor) -> list[str]:
    """The texts of a BYTES tensor of shape [batch].

    Raises:
        InvalidRequest: it is not of that type and shape, its lengths do not add up, or a text is not UTF-8.
    """
    name = tensor.name
    if tensor.datatype != BYTES or len(tensor.shape) != 1:
        raise InvalidRequest(f"input {name!r}: expected BYTES [batch], got {tensor.datatype} {list(tensor.shape)}")
    if tensor.shape[0] < 1:
        raise InvalidRequest(f"input {name!r}: expected at least one text, got none")
    data = memoryview(tensor.data).cast("B")
    texts: list[str] = []
    place = 0
    for index in range(tensor.shape[0]):
        start = place + _LENGTH.size
        if start > len(data):
            raise InvalidRequest(f"input {name!r}: {tensor.shape[0]} texts expected, the bytes end after {index}")
        place = start + _LENGTH.unpack_from(data, place)[0]
        if place > len(data):
            raise InvalidRequest(f"input {name!r}: text {index} is longer than the bytes that came")
        try:
            texts.append(str(data[start:place], "utf-8"))
        except UnicodeDecodeError as error:
            raise InvalidRequest(f"input {name!r}: text {index} is not UTF-8: {error.reason}") from error
    if place != len(data):
        raise InvalidRequest(f"input {name!r}: {len(data) - place} bytes after the last of {tensor.shape[0]} texts")
    return texts
