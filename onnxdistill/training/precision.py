"""Which floating-point type to train in."""

from __future__ import annotations

from typing import Literal

import torch

# oneDNN has fast bfloat16 kernels where the processor has one of these; elsewhere it emulates them slowly.
BFLOAT16_CAPABILITIES = ("avx512_bf16", "amx_bf16")


def training_dtype(wanted: Literal["auto", "float32", "bfloat16"]) -> torch.dtype:
    """The type of activations in autocast; weights stay float32.

    `auto` is bfloat16 on processors with instructions for it: on ResNet-20 a step then takes about half as long.
    """
    if wanted == "auto":
        capabilities = torch.cpu.get_capabilities()
        return torch.bfloat16 if any(capabilities.get(name) for name in BFLOAT16_CAPABILITIES) else torch.float32
    return torch.bfloat16 if wanted == "bfloat16" else torch.float32


def notes_on_devices() -> list[str]:
    """A sentence where there is something that trainings leave idle."""
    if not torch.cuda.is_available():
        return []
    return ["trainings run on the processor; the GPU of this machine is left to what is timed on it."]


def autocast(dtype: torch.dtype) -> torch.autocast:
    """Activations in `dtype` within the block; nothing changes for float32."""
    return torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32)
