"""Int8 for linear layers: weights per output channel, activations per token. torchao stays behind this module."""

import logging
from typing import Final

import torch

from worker.errors import InvalidRequest
from worker.program import Program

INT8_OPERATORS: Final = frozenset({"aten::_int_mm"})
"""What a captured int8 linear layer consists of, besides its scaling."""


def quantize_int8(module: torch.nn.Module) -> None:
    """Replaces the module's linear layers, in place, so that a capture of it has int8 arithmetic.

    Raises:
        InvalidRequest: the module has no linear layer.
    """
    if not any(isinstance(layer, torch.nn.Linear) for layer in module.modules()):
        raise InvalidRequest(
            f"{type(module).__name__} has no linear layer to quantize; package it without --quantize int8"
        )
    # torchao warns at import about kernels of other platforms.
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_  # noqa: PLC0415
        from torchao.utils import unwrap_tensor_subclass  # noqa: PLC0415

        quantize_(module, Int8DynamicActivationInt8WeightConfig(set_inductor_config=False))
        unwrap_tensor_subclass(module)
    finally:
        logging.disable(before)


def int8_layers(program: Program) -> int:
    """How many int8 matrix products a program has."""
    return sum(
        isinstance(step.operator, torch._ops.OpOverload) and step.operator._schema.name in INT8_OPERATORS
        for step in program.steps
    )
