import pytest
from torch import Tensor, nn

from compressor.profiling.kernel_check import kernel_problem


class _Half(nn.Module):
    """A kernel that forgets half of its inputs."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x.clone().index_fill_(1, x.new_tensor(range(32)).long(), 0))
        return y


class _Missing(nn.Module):
    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError("no kernel image is available for execution on the device\nand more")


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda layer: layer, None),
        (_Half, "cpu computes something else"),
        (_Missing, "cpu does not compute it: no kernel image is available for execution on the device"),
    ],
)
def test_a_kernel_that_is_missing_or_wrong_is_found(make: type[nn.Module], told: str | None) -> None:
    found = kernel_problem(make, "cpu", tolerance=0.01)
    assert (found is None) == (told is None)
    assert (found or "").startswith(told or "")
