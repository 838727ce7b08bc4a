import json
import struct
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from worker.errors import InvalidRequest
from worker.nouns import Tensor
from worker.text import AssetError, TextEmbedding

WORDS = {"[PAD]": 0, "[UNK]": 1, "one": 2, "two": 3, "three": 4}


@pytest.fixture
def assets(tmp_path: Path) -> Path:
    tokenizer = Tokenizer(WordLevel(WORDS, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "text.json").write_text(json.dumps({"max_length": 4, "dimension": 2}))
    return tmp_path


@pytest.fixture
def handler(assets: Path) -> TextEmbedding:
    return TextEmbedding(assets)


def text_tensor(*texts: bytes, name: str = "text") -> Tensor:
    return Tensor(name, "BYTES", (len(texts),), b"".join(struct.pack("<I", len(text)) + text for text in texts))


def array(tensor: Tensor) -> list[list[int]]:
    return np.frombuffer(tensor.data, dtype="<i8").reshape(tensor.shape).tolist()  # type: ignore[no-any-return]


def test_texts_become_tokens_padded_to_the_longest(handler: TextEmbedding) -> None:
    ids, mask = handler.before([text_tensor(b"one two three", b"three")])
    assert (ids.name, ids.datatype, ids.shape) == ("input_ids", "INT64", (2, 3))
    assert array(ids) == [[2, 3, 4], [4, 0, 0]]
    assert array(mask) == [[1, 1, 1], [1, 0, 0]]


def test_a_long_text_is_cut(handler: TextEmbedding) -> None:
    ids, _ = handler.before([text_tensor(b"one " * 100)])
    assert ids.shape == (1, 4)


def test_embedded_nulls_and_any_alphabet_survive(handler: TextEmbedding) -> None:
    ids, _ = handler.before([text_tensor(b"one\0two", "приклад 例".encode())])
    assert ids.shape[0] == 2


def test_an_empty_text_is_answered(handler: TextEmbedding) -> None:
    ids, mask = handler.before([text_tensor(b"", b"one")])
    assert ids.shape == (2, 1)
    assert array(mask) == [[0], [1]]
    alone, mask = handler.before([text_tensor(b"")])
    assert array(alone) == array(mask) == [[0]]


def test_the_signature_is_text_in_and_a_vector_out(handler: TextEmbedding) -> None:
    assert [(spec.name, spec.datatype, spec.shape) for spec in handler.signature.inputs] == [
        ("text", "BYTES", ("batch",))
    ]
    assert [(spec.name, spec.shape) for spec in handler.signature.outputs] == [("embedding", ("batch", 2))]


def test_the_embedding_is_handed_on(handler: TextEmbedding) -> None:
    embedding = Tensor("embedding", "FP32", (1, 2), bytes(8))
    assert handler.after([embedding]) == (embedding,)


@pytest.mark.parametrize(
    ("tensor", "problem"),
    [
        (text_tensor(b"\xff\xfe"), "text 0 is not UTF-8"),
        (text_tensor(b"one", b"\xc3"), "text 1 is not UTF-8"),
        (text_tensor(b"one", name="other"), "expected the one tensor 'text'"),
        (Tensor("text", "BYTES", (1,), struct.pack("<I", 9) + b"one"), "longer than the bytes"),
        (Tensor("text", "BYTES", (2,), struct.pack("<I", 3) + b"one"), "2 texts expected"),
        (Tensor("text", "BYTES", (1,), struct.pack("<I", 3) + b"onetwo"), "3 bytes after the last"),
        (Tensor("text", "BYTES", (1, 1), b""), r"expected BYTES \[batch\]"),
        (Tensor("text", "FP32", (1,), bytes(4)), r"expected BYTES \[batch\]"),
        (Tensor("text", "BYTES", (0,), b""), "at least one text"),
    ],
)
def test_a_bad_text_is_refused_by_the_name_of_the_tensor(handler: TextEmbedding, tensor: Tensor, problem: str) -> None:
    with pytest.raises(InvalidRequest, match=problem) as caught:
        handler.before([tensor])
    assert "'text'" in str(caught.value)


def test_missing_or_damaged_assets_are_named(assets: Path) -> None:
    (assets / "tokenizer.json").write_text("{}")
    with pytest.raises(AssetError, match=r"tokenizer\.json"):
        TextEmbedding(assets)
    (assets / "text.json").write_text('{"max_length": 4, "dimension": 2, "novelty": 1}')
    with pytest.raises(AssetError, match="novelty"):
        TextEmbedding(assets)
    (assets / "text.json").unlink()
    with pytest.raises(AssetError):
        TextEmbedding(assets)
