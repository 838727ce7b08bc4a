import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import nn

from compressor.capture import CaptureError, capture, patient_file
from compressor.model import Input, Model
from tests import models
from worker.errors import ShardlineError
from worker.nouns import Axis
from worker.runtime import Eager


class Twice(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2


def model_of(
    module: nn.Module, example: torch.Tensor | None = None, axes: tuple[str | None, ...] = ("batch", None)
) -> Model:
    return Model(module, (Input("x", torch.ones(2, 3) if example is None else example, axes),))


@pytest.mark.parametrize("batch", [1, 2, 7, 40])
@pytest.mark.parametrize("length", [1, 3, 90])
def test_sizes_that_were_never_traced_are_computed(tmp_path: Path, batch: int, length: int) -> None:
    model = models.toy()
    program = Eager(capture(model, tmp_path / "program.pt2"))
    inputs = (torch.randn(batch, length, 8), torch.randn(batch, length, 8))
    for found, expected in zip(program.run(inputs), model.module(*inputs), strict=True):
        assert torch.equal(found, expected)


def test_the_file_tells_nothing_of_the_machine_that_captured_it(tmp_path: Path) -> None:
    path = tmp_path / "program.pt2"
    capture(models.toy(), path)
    content = path.read_bytes()
    assert b"models.py" not in content
    assert b"/forward" not in content
    assert b'stack_trace": "' not in content


def test_bounds_of_axes_are_kept(tmp_path: Path) -> None:
    program = capture(models.toy(), tmp_path / "program.pt2")
    assert sorted(program.bounds.values()) == [(1, 64), (1, 128)]


def test_in_place_operators_are_captured_as_pure_ones(tmp_path: Path) -> None:
    class InPlace(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = x * 2
            view = y[:, 0]
            view.add_(5)
            return y

    program = capture(model_of(InPlace()), tmp_path / "program.pt2")
    given = torch.randn(4, 3)
    assert torch.equal(Eager(program).run((given,))[0], InPlace()(given))


def test_outputs_may_be_a_tensor_a_tuple_a_list_or_a_dict(tmp_path: Path) -> None:
    class Named(nn.Module):
        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"one": x + 1, "two": x + 2}

    program = capture(model_of(Named()), tmp_path / "program.pt2")
    one, two = Eager(program).run((torch.zeros(2, 3),))
    assert (float(one[0, 0]), float(two[0, 0])) == (1.0, 2.0)


class BranchesOnData(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1 if x.sum() > 0 else x - 1


class Cond(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cond(x.sum() > 0, lambda y: y + 1, lambda y: y - 1, (x,))  # type: ignore[no-any-return]


class SizeOfData(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[x > 0]


class ReturnsText(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, str]:
        return x, "text"


class FixedBatch(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.ones(2, 3)


class Even(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(-1, 2, 3)


class FewRows(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if x.shape[0] < 5 else x


class Broken(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ torch.ones(5, 5)


def inside(module: nn.Module) -> nn.Module:
    """A model with the module as a layer in it, "block.1"."""
    return nn.Sequential(OrderedDict(block=nn.Sequential(nn.Linear(3, 3), module)))


@pytest.mark.parametrize(
    ("module", "problem"),
    [
        (
            BranchesOnData(),
            r"operator aten.item.default of what aten.gt.Scalar gave at test_capture.py:\d+ "
            r"\(return x \+ 1 if x.sum\(\) > 0 else x - 1\): a branch",
        ),
        (ReturnsText(), "a tuple of Tensor, str; expected a tensor"),
        (
            FixedBatch(),
            r"FixedBatch cannot be captured: operator torch.Tensor.add at test_capture.py:\d+ \(return x \+ torch.ones"
            r"\(2, 3\)\): axis 'batch' of the input 'x': its size is 2 there, and no other; use the tensor's own size",
        ),
        (inside(FixedBatch()), r"operator torch.Tensor.add in block.1 at test_capture.py:\d+ \(return x \+ torch.ones"),
        (
            inside(FewRows()),
            r"at test_capture.py:\d+ \(return x \* 2 if x.shape\[0\] < 5 .*: axis 'batch' of the input 'x': its "
            r"sizes are bounded there; say so with Axis\('batch', maximum=4\)",
        ),
        (Broken(), r"Broken cannot be captured: operator aten.mm.default at test_capture.py:\d+"),
        (
            SizeOfData(),
            r"operator aten.index.Tensor at test_capture.py:\d+ \(return x\[x > 0\]\): it gives a size that depends on",
        ),
        (Cond(), r"operator cond at test_capture.py:\d+ \(return torch.cond\(.*\): it branches or loops"),
        (inside(BranchesOnData()), r"Sequential cannot .* gave in block.1 at test_capture.py:\d+ \(return x \+ 1 if"),
        (inside(SizeOfData()), r"operator aten.index.Tensor in block.1 at test_capture.py:\d+"),
        (inside(Cond()), r"operator cond in block.1 at test_capture.py:\d+"),
        (inside(Broken()), r"operator aten.mm.default in block.1 at test_capture.py:\d+"),
    ],
)
def test_what_cannot_be_captured_says_why(tmp_path: Path, module: nn.Module, problem: str) -> None:
    with pytest.raises(ShardlineError, match=problem):
        capture(model_of(module), tmp_path / "program.pt2")


class Speaks(nn.Module):
    """Writes to stderr itself before it branches."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        sys.stderr.write("a word of its own\n")
        return x + 1 if x.sum() > 0 else x - 1


def test_a_failing_capture_leaves_the_message_alone_on_stderr(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from tests.compressor import test_capture as t\n"
        "try: t.capture(t.model_of(t.inside(t.Speaks())), Path(sys.argv[1]))\n"
        "except t.CaptureError as error: sys.stderr.write(f'{error}\\n')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "p.pt2")], capture_output=True, text=True, check=True, timeout=120
    )
    own, told = done.stderr.strip().splitlines()
    assert own == "a word of its own"
    assert told.startswith("Sequential cannot be captured: operator aten.item.default of what aten.gt.Scalar gave in")


@pytest.mark.parametrize(
    ("model", "problem"),
    [
        (Model(Twice(), ()), "no inputs"),
        (model_of(Twice(), torch.ones(1, 3)), "axis 'batch' is 1; give an example of at least 2"),
        (model_of(Twice(), axes=("batch",)), "1 axes for an example of shape"),
        (model_of(Twice(), axes=("a b", None)), "cannot name an axis"),
        (model_of(Twice(), torch.ones(2, 3, dtype=torch.complex64)), "no name in the protocol"),
        (Model(Twice(), (Input("x", torch.ones(2), (None,)),) * 2), "two inputs have one name"),
    ],
)
def test_a_description_that_is_wrong_names_the_input(tmp_path: Path, model: Model, problem: str) -> None:
    with pytest.raises(CaptureError, match=problem):
        capture(model, tmp_path / "program.pt2")


def test_an_axis_beyond_what_the_model_can_take_is_refused(tmp_path: Path) -> None:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("positions", torch.arange(16))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.positions[: x.shape[1]]  # type: ignore[index]

    model = Model(Positions(), (Input("x", torch.ones(2, 3), ("batch", "length")),), axes=(Axis("length", 1, 64),))
    with pytest.raises(CaptureError, match=r"'length' of the input 'x': .*; say so with Axis\('length', maximum=16\)"):
        capture(model, tmp_path / "program.pt2")


def test_an_axis_of_which_not_every_size_will_do_is_refused(tmp_path: Path) -> None:
    told = (
        r"operator torch.Tensor.reshape in block.1 at .*: its sizes are bound there \(batch = 2\*_batch\); compute so"
    )
    with pytest.raises(CaptureError, match=told):
        capture(model_of(inside(Even()), torch.ones(4, 3)), tmp_path / "program.pt2")


def test_two_axes_that_are_always_alike_are_to_have_one_name(tmp_path: Path) -> None:
    class Sum(nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return x + y

    inputs = tuple(Input(name, torch.ones(2, 3), ("batch", axis)) for name, axis in (("x", "a"), ("y", "b")))
    with pytest.raises(CaptureError, match=r"Sum cannot be captured: operator torch.Tensor.add .* one name"):
        capture(Model(Sum(), inputs), tmp_path / "program.pt2")


def test_an_axis_that_pytorchs_own_layer_binds_is_told_without_the_line_that_asked_for_the_capture(
    tmp_path: Path,
) -> None:
    bound = nn.Sequential(nn.Linear(3, 3), nn.Unflatten(0, (2, 1)))
    with pytest.raises(CaptureError, match=r"operator torch.Tensor.unflatten in 1: axis 'batch' of the input 'x'"):
        capture(model_of(bound), tmp_path / "program.pt2")


def test_a_disk_that_is_full_is_told_when_pytorch_has_ended_its_file(tmp_path: Path) -> None:
    (tmp_path / "full").symlink_to("/dev/full")
    ended = []

    def write() -> None:
        with patient_file(tmp_path / "full") as file:
            file.write(b"a few bytes, which wait in a buffer")
            ended.append(file.seek(0))

    with pytest.raises(OSError, match="No space left on device"):
        write()
    assert ended == [0]
