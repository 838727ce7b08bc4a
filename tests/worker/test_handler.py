from collections.abc import Sequence
from pathlib import Path

import pytest

from worker.errors import InvalidRequest, Unsupported
from worker.handler import Handler, load_handler
from worker.nouns import Signature, Tensor, TensorSpec


class Doubles:
    """A handler as an operator would write one."""

    def __init__(self, assets: Path) -> None:
        self.assets = assets
        self.signature: Signature = Signature(
            (TensorSpec("x", "FP32", ("batch",)),), (TensorSpec("y", "FP32", ("batch",)),)
        )

    def before(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return tuple(tensors)

    def after(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return tuple(tensors)


class NotOne:
    def __init__(self, assets: Path) -> None:
        pass


def test_an_installed_class_is_loaded_with_its_assets(tmp_path: Path) -> None:
    handler = load_handler(f"{__name__}:Doubles", tmp_path)
    assert isinstance(handler, Handler)
    assert handler.signature.inputs[0].name == "x"


@pytest.mark.parametrize(
    "name", ["", "worker.text", "worker.text:", ":X", "a:b:c", "../x:Y", "os;x:Y", "worker.text:a.b"]
)
def test_a_name_that_is_not_module_and_class_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="expected module:Class"):
        load_handler(name, tmp_path)


@pytest.mark.parametrize("name", ["no_such_module_at_all:X", "worker.text:Nothing", f"{__name__}:NotOne"])
def test_what_is_not_installed_or_not_a_handler_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="handler"):
        load_handler(name, tmp_path)
