from pathlib import Path

import torch

from compressor.capture import capture
from compressor.model import Input, Model
from compressor.rewrite import gelu, rewrite
from worker.runtime import Eager


class Gelus(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.nn.functional.gelu(x), torch.nn.functional.gelu(x, approximate="tanh")


def test_the_fast_gelu_is_the_exact_one_to_the_sixth_digit() -> None:
    x = torch.linspace(-12, 12, 400_001)
    assert float((gelu(x) - torch.nn.functional.gelu(x.double()).float()).abs().max()) < 4e-6


def test_gelu_of_nan_and_infinity() -> None:
    given = torch.tensor([float("nan"), float("inf"), 0.0])
    found = gelu(given)
    assert found[0].isnan()
    assert found[1] == float("inf")
    assert found[2] == 0


def test_only_the_exact_gelu_is_rewritten(tmp_path: Path) -> None:
    program = capture(Model(Gelus(), (Input("x", torch.randn(2, 3), ("batch", None)),)), tmp_path / "program.pt2")
    changed = rewrite(program)
    assert [step.operator is gelu for step in changed.steps] == [True, False]
    given = torch.randn(5, 3)
    exact, tanh = Eager(program).run((given,))
    found = Eager(changed).run((given,))
    torch.testing.assert_close(found[0], exact, rtol=1e-5, atol=4e-6)
    assert torch.equal(found[1], tanh)
