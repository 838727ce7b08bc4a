from pathlib import Path

import torch

from compressor.capture import capture
from compressor.model import Input, Model
from compressor.packaging.rewrite import gelu, rewrite
from worker.runtime import Eager


class Gelus(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.nn.functional.gelu(x), torch.nn.functional.gelu(x, approximate="tanh")


def test_the_fast_gelu_is_close_to_the_exact_one_everywhere() -> None:
    x = torch.linspace(-12, 12, 400_001)
    assert float((gelu(x) - torch.nn.functional.gelu(x.double()).float()).abs().max()) < 2e-5


def test_the_fast_gelu_of_small_numbers_is_close_for_their_size() -> None:
    x = torch.cat([sign * torch.logspace(-3, -1, 1001) for sign in (-1, 1)])
    exact = torch.nn.functional.gelu(x.double()).float()
    assert float(((gelu(x) - exact) / exact).abs().max()) < 4e-3


def test_gelu_of_nan_and_infinity() -> None:
    given = torch.tensor([float("nan"), float("inf"), 0.0, -float("inf")])
    found = gelu(given)
    assert found[0].isnan()
    assert found[1] == float("inf")
    assert found[2] == 0
    assert found[3] == 0


def test_only_the_exact_gelu_is_rewritten(tmp_path: Path) -> None:
    program = capture(Model(Gelus(), (Input("x", torch.randn(2, 3), ("batch", None)),)), tmp_path / "program.pt2")
    changed = rewrite(program)
    assert [step.operator is gelu for step in changed.steps] == [True, False]
    given = torch.randn(5, 3)
    exact, tanh = Eager(program).run((given,))
    found = Eager(changed).run((given,))
    torch.testing.assert_close(found[0], exact, rtol=1e-5, atol=2e-5)
    assert torch.equal(found[1], tanh)


class Rows(torch.nn.Module):
    """A layer norm with all it may have, one with little, and a number of each row."""

    def __init__(self) -> None:
        super().__init__()
        self.full = torch.nn.LayerNorm(5, eps=1e-3)
        self.bare = torch.nn.LayerNorm(5, elementwise_affine=False)
        torch.nn.init.normal_(self.full.weight)
        torch.nn.init.normal_(self.full.bias)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return self.full(x), self.bare(x), x.amax(-1, keepdim=True).reciprocal()


def test_layer_norms_and_row_scales_give_the_same_rewritten(tmp_path: Path) -> None:
    program = capture(Model(Rows(), (Input("x", torch.randn(2, 5), ("batch", None)),)), tmp_path / "program.pt2")
    changed = rewrite(program)
    assert [new.operator is not old.operator for new, old in zip(changed.steps, program.steps, strict=True)].count(
        True
    ) == 3
    given = torch.randn(7, 5)
    for found, expected in zip(Eager(changed).run((given,)), Eager(program).run((given,)), strict=True):
        torch.testing.assert_close(found, expected)
