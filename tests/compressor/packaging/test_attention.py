"""Where a capture binds sizes by its kernel of attention, it is made again with others."""

import pytest
import torch
from torch._dynamo.exc import UserError, UserErrorType
from torch.nn.attention import SDPBackend

from compressor.packaging.compile import ATTENTION, with_attention


def enabled() -> tuple[bool, bool]:
    kernels = torch.backends.cuda
    return kernels.cudnn_sdp_enabled(), kernels.flash_sdp_enabled()  # type: ignore[no-untyped-call]


class Maker:
    """Finds sizes bound so many times. `allowed`: at each attempt, which of cuDNN's and flash kernels it may choose."""

    def __init__(self, bound: int) -> None:
        self.left = bound
        self.allowed: list[tuple[bool, bool]] = []

    def __call__(self) -> None:
        self.allowed.append(enabled())
        if self.left:
            self.left -= 1
            raise UserError(UserErrorType.CONSTRAINT_VIOLATION, f"{len(self.allowed)} of the attempts")


@pytest.mark.parametrize("bound", [0, 1, 2])
def test_other_kernels_are_tried_until_no_size_is_bound(bound: int) -> None:
    make = Maker(bound)
    with_attention(make, ATTENTION)
    assert make.allowed == [(True, True), (False, True), (False, False)][: bound + 1]
    assert enabled() == (True, True)


def test_where_all_bind_sizes_the_first_error_is_told() -> None:
    make = Maker(3)
    with pytest.raises(UserError, match="1 of the attempts"):
        with_attention(make, ATTENTION)
    assert len(make.allowed) == 3


def test_without_others_there_is_one_attempt() -> None:
    make = Maker(1)
    with pytest.raises(UserError):
        with_attention(make, ())
    assert len(make.allowed) == 1


def test_what_is_switched_off_stays_so_in_the_first_attempt() -> None:
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        make = Maker(0)
        with_attention(make, [[SDPBackend.MATH]])
        assert make.allowed == [(False, True)]
    finally:
        torch.backends.cuda.enable_cudnn_sdp(True)
