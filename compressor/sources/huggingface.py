"""A Hugging Face encoder's folder (config.json and safetensors) as a model. Nothing is fetched, no code in it is run.

A sentence-transformers folder (modules.json, 1_Pooling) gives one pooled output and is served as text; another encoder
gives its last hidden state.
"""

import hashlib
import json
import logging
from pathlib import Path
from typing import Any, Final

import torch

from compressor.model import Input, Model
from worker.errors import InvalidRequest, Unsupported
from worker.nouns import Axis

TEXT_HANDLER: Final = "worker.text:TextEmbedding"
MAX_BATCH: Final = 4096

_OFFSET_POSITIONS: Final = frozenset({"roberta", "xlm-roberta", "camembert", "mpnet", "longformer"})
"""Families whose first position is the padding token's index plus one, so that many fewer tokens fit."""


def read_folder(folder: Path) -> Model:
    """input_ids, attention_mask INT64 [batch, sequence] → embedding FP32 [batch, n], or last_hidden_state.

    Raises:
        InvalidRequest: a file is missing, or the model is not an encoder.
        Unsupported: transformers is not installed, or the pooling is not known here.
    """
    config = _read_json(folder / "config.json")
    if not isinstance(config, dict):
        raise InvalidRequest(
            f"{folder / 'config.json'}: expected an object with model_type, not a {type(config).__name__}"
        )
    if not any(folder.glob("*.safetensors")):
        raise InvalidRequest(f"{folder}: no .safetensors file; other formats can run code when loaded and are not read")
    if config.get("is_decoder") or config.get("is_encoder_decoder"):
        raise InvalidRequest(f"{folder}: {config.get('model_type')} is a decoder; encoders are supported")
    encoder = _load(folder)
    if encoder.config.is_encoder_decoder:
        raise InvalidRequest(f"{folder}: {encoder.config.model_type} is a decoder; encoders are supported")
    if not isinstance(getattr(encoder.config, "vocab_size", None), int):
        raise InvalidRequest(f"{folder}: {encoder.config.model_type} takes no tokens; encoders of text are supported")
    longest = _longest(encoder.config)
    pad = int(encoder.config.pad_token_id or 0)
    pooling = _pooling(folder)
    module = LastHiddenState(encoder) if pooling is None else Pooled(encoder, *pooling)
    example = torch.randint(1, min(1000, int(encoder.config.vocab_size)), (3, min(17, longest)))
    text = pooling is not None and (folder / "tokenizer.json").is_file()
    return Model(
        module=module.eval(),
        inputs=(
            Input("input_ids", example, ("batch", "sequence"), pad=pad),
            Input("attention_mask", torch.ones_like(example), ("batch", "sequence"), pad=0),
        ),
        outputs=("last_hidden_state",) if pooling is None else ("embedding",),
        axes=(Axis("batch", 1, MAX_BATCH), Axis("sequence", 1, longest)),
        handler=TEXT_HANDLER if text else None,
        assets=_text_assets(folder, longest, pad, int(encoder.config.hidden_size)) if text else {},
        identity=folder_identity(folder),
    )


def _load(folder: Path) -> Any:
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # transformers loads torchao, which warns of kernels for other machines
    try:
        from transformers import AutoModel  # noqa: PLC0415 (optional: only this source needs it)
        from transformers.utils.logging import disable_progress_bar  # noqa: PLC0415

        disable_progress_bar()
        return AutoModel.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False, use_safetensors=True, dtype=torch.float32
        ).eval()
    except ImportError as error:
        raise Unsupported("a Hugging Face folder needs transformers: pip install 'shardline[huggingface]'") from error
    except Exception as error:  # of a damaged file or an unknown model, it raises errors of many unrelated types
        raise InvalidRequest(
            f"{folder}: transformers cannot load it: {type(error).__name__}: {str(error).strip()[:500]}; are "
            "config.json and the .safetensors files whole, and of a model that needs no code of the folder's own?"
        ) from error
    finally:
        logging.disable(before)


class LastHiddenState(torch.nn.Module):
    def __init__(self, encoder: torch.nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return hidden


class Pooled(torch.nn.Module):
    """One vector a text: the mean of its tokens, or its first token; of length one where `normalize`."""

    def __init__(self, encoder: torch.nn.Module, mean: bool, normalize: bool) -> None:
        super().__init__()
        self.encoder = encoder
        self.mean = mean
        self.normalize = normalize

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state  # [B, S, H]
        if self.mean:
            weight = attention_mask.unsqueeze(-1).to(hidden.dtype)  # [B, S, 1]
            pooled = (hidden * weight).sum(1) / weight.sum(1).clamp(min=1e-9)
        else:
            pooled = hidden[:, 0]
        return torch.nn.functional.normalize(pooled, dim=1) if self.normalize else pooled


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"{path}: cannot be read: {error}") from error


def _pooling(folder: Path) -> tuple[bool, bool] | None:
    """(mean rather than first token, normalize) of a sentence-transformers folder; None for a plain encoder."""
    if not (folder / "modules.json").is_file():
        return None
    kinds = [str(module["type"]).rsplit(".", 1)[-1] for module in _read_json(folder / "modules.json")]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise Unsupported(
            f"{folder / 'modules.json'}: {' → '.join(kinds)}; known are Transformer → Pooling (→ Normalize)"
        )
    settings = _read_json(folder / "1_Pooling" / "config.json")
    modes = sorted(key for key, value in settings.items() if key.startswith("pooling_mode_") and value is True)
    if modes not in (["pooling_mode_mean_tokens"], ["pooling_mode_cls_token"]):
        raise Unsupported(f"{folder / '1_Pooling'}: {', '.join(modes) or 'no mode'}; known are mean and first token")
    return modes == ["pooling_mode_mean_tokens"], "Normalize" in kinds


def _longest(config: Any) -> int:
    positions = int(getattr(config, "max_position_embeddings", 0) or 0)
    if positions < 2:
        return 1 << 20
    return positions - int(config.pad_token_id or 0) - 1 if config.model_type in _OFFSET_POSITIONS else positions


def _text_assets(folder: Path, longest: int, pad: int, dimension: int) -> dict[str, Path | bytes]:
    settings = folder / "sentence_bert_config.json"
    limit = int(_read_json(settings).get("max_seq_length") or longest) if settings.is_file() else longest
    text = {"max_length": min(limit, longest), "dimension": dimension, "pad_id": pad}
    return {"tokenizer.json": folder / "tokenizer.json", "text.json": json.dumps(text).encode()}


def folder_identity(folder: Path) -> str:
    """A hash of the files that decide what the model is."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.suffix in {".json", ".safetensors"} and path.is_file():
            digest.update(f"{path.relative_to(folder).as_posix()} {path.stat().st_size}\n".encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
