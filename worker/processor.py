"""What this machine's processor is and can: its vector instructions, as far as code is chosen by them."""

import re
from functools import cache
from pathlib import Path
from typing import Final

import torch

CPU_INFO: Final = Path("/proc/cpuinfo")
_VECTOR_FLAGS: Final = re.compile(r"(avx|amx|sse|fma|f16c|bmi|gfni|vaes|vpcl|asimd|sve|neon|bf16|i8mm)\w*", re.ASCII)
_INT8_PRODUCTS: Final = re.compile(r"avx512_?vnni|avx_vnni|amx_int8", re.ASCII)


def cpu_info(*keys: str) -> str:
    """What /proc/cpuinfo says first under one of the keys; "" where it says nothing, or is not there."""
    if CPU_INFO.is_file():
        for line in CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() in keys:
                return value.strip()
    return ""


@cache
def vector_flags() -> tuple[str, ...]:
    """The processor's vector instruction sets by their names in /proc/cpuinfo, sorted; none where that is not there."""
    return tuple(sorted(flag for flag in cpu_info("flags", "Features").split() if _VECTOR_FLAGS.fullmatch(flag)))


def saturates_int8(flags: tuple[str, ...]) -> bool:
    """Whether a processor with these flags is an x86 one without instructions that add up products of int8 numbers.

    oneDNN's int8 convolutions add two products up in 16 bits there, which saturate.
    """
    return "avx2" in flags and not any(map(_INT8_PRODUCTS.fullmatch, flags))


def lacks_int8_products(flags: tuple[str, ...], capability: str) -> bool:
    """Whether PyTorch multiplies int8 matrices with plain loops on a processor with these flags.

    capability: as `torch.backends.cpu.get_cpu_capability` says.
    """
    return saturates_int8(flags) and capability == "AVX2"


def saturates_int8_here() -> bool:
    """`saturates_int8` of this machine."""
    return saturates_int8(vector_flags())


def lacks_int8_products_here() -> bool:
    """`lacks_int8_products` of this machine."""
    return lacks_int8_products(vector_flags(), torch.backends.cpu.get_cpu_capability())
