"""Which encoder a teacher uses: the fast one where it runs and knows the VAE, otherwise diffusers' own."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...replay import Replayed
from .network import FrozenEncoder, Unsupported

HALVES = (torch.float16, torch.bfloat16)


def fast_encoder(
    vae: Any, device: torch.device, dtype: torch.dtype, *, recorded: bool = False
) -> Callable[[Tensor], Tensor] | None:
    """The fast encoder (see FrozenEncoder) of a VAE that is on `device` in `dtype`, or None: diffusers' own is to be
    used.

    It is for CUDA and 16 bits. Where it would be for this VAE, but Triton is missing or the VAE has a layer it does not
    know, a warning says so. `recorded`: launched as CUDA graphs (replay.py).
    """
    if device.type != "cuda" or dtype not in HALVES:
        return None
    try:
        from .triton_arithmetic import TritonArithmetic
    except ImportError:
        warnings.warn(
            "the fast VAE encoder needs Triton (pip install triton); the VAE runs as diffusers has it, slower"
        )
        return None
    try:
        encoder = FrozenEncoder(vae, TritonArithmetic())
    except Unsupported as problem:
        warnings.warn(f"the fast VAE encoder does not know {problem}; the VAE runs as diffusers has it, slower")
        return None
    return recording(encoder) if recorded else encoder


def recording(encoder: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The same function, launched as CUDA graphs once it has been called a few times with one shape."""
    replayed = Replayed(lambda pixels: (encoder(pixels),), "the VAE encoder", differentiable=True)
    return lambda pixels: replayed(pixels)[0]
