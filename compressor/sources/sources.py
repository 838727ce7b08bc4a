"""Finds out what a source is and makes a `Model` of it: a Python factory, a Hugging Face folder, or a .pt2 file."""

import hashlib
import importlib
import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch

from compressor.model import Input, Model
from worker.errors import InvalidRequest, ShardlineError

_FACTORY: Final = re.compile(r"([A-Za-z_][\w.]*):([A-Za-z_]\w*)", re.ASCII)

EXPECTED: Final = "expected module:function, a Hugging Face folder, or a .pt2 file"


def read_source(source: str | Path) -> Model:
    """The model that `source` names.

    Raises:
        InvalidRequest: it names nothing that can be packaged.
    """
    path = Path(source)
    if path.is_dir():
        from compressor.sources.huggingface import read_folder  # noqa: PLC0415 (transformers is optional)

        return read_folder(path)
    if path.suffix == ".pt2" and path.is_file():
        from compressor.sources.exported import read_exported  # noqa: PLC0415

        return read_exported(path)
    match = _FACTORY.fullmatch(str(source))
    if match is None:
        raise InvalidRequest(f"source {str(source)!r}: nothing there; {EXPECTED}")
    return _from_factory(str(source), match[1], match[2])


def _from_factory(source: str, module: str, function: str) -> Model:
    try:
        made = getattr(importlib.import_module(module), function)()
    except (ImportError, AttributeError) as error:
        raise InvalidRequest(f"source {source!r}: {error}; {EXPECTED}") from error
    except ShardlineError:
        raise
    except Exception as error:  # the user's code, which may not find a file or be let read it
        raise InvalidRequest(f"source {source!r} failed: {type(error).__name__}: {error}") from error
    return made if isinstance(made, Model) else _from_tuple(source, made)


def _from_tuple(source: str, made: Any) -> Model:
    """(module, {input: example}, {input: {dimension: axis}}), for factories that import nothing of ours."""
    match made:
        case (torch.nn.Module() as module, Mapping() as examples, Mapping() as axes):
            pass
        case _:
            raise InvalidRequest(
                f"source {source!r} returned a {type(made).__name__}; expected a compressor.model.Model, or "
                "(nn.Module, {input: example tensor}, {input: {dimension: axis name}})"
            )
    unknown = sorted(set(axes) - set(examples))
    if unknown:
        raise InvalidRequest(f"source {source!r}: axes of {', '.join(unknown)}, of which there is no example")
    inputs = tuple(
        Input(name, example, tuple(axes.get(name, {}).get(dimension) for dimension in range(example.dim())))
        for name, example in examples.items()
    )
    return Model(module, inputs)


def code_of(name: str) -> str:
    """The source code of a module, also as "module:function"; `name` itself where there is none to read."""
    try:
        return inspect.getsource(importlib.import_module(name.partition(":")[0]))
    except (OSError, TypeError, ImportError):
        return name


def weights_digest(module: torch.nn.Module) -> str:
    """A hash of a module's structure and all its weights."""
    digest = hashlib.sha256(repr(module).encode())
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(
            tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data if tensor.numel() else b""
        )
    return digest.hexdigest()
