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
SMALL = 32
"""Pixels a side of the image that the kernels are tried out with."""


def fast_encoder(
    vae: Any, device: torch.device, dtype: torch.dtype, *, recorded: bool = False
) -> Callable[[Tensor], Tensor] | None:
    """The fast encoder (see FrozenEncoder) of a VAE that is on `device` in `dtype`, or None: diffusers' own is to be
    used.

    It is for CUDA and 16 bits. Where it would be for this VAE, but Triton is missing or does not run, or the VAE has a
    layer it does not know, a warning says so. `recorded`: launched as CUDA graphs (replay.py).
    """
    if device.type != "cuda" or dtype not in HALVES:
        return None
    try:
        from .triton_arithmetic import TritonArithmetic

        encoder = FrozenEncoder(vae, TritonArithmetic())
        _try_out(encoder)
    except ImportError:
        problem = "needs Triton (pip install triton)"
    except Unsupported as unknown:
        problem = f"does not know {unknown}"
    except Exception as failure:  # noqa: BLE001  whatever the compiler or the driver raises goes into the warning
        problem = f"does not run here ({type(failure).__name__}: {str(failure).strip().partition(chr(10))[0]})"
    else:
        return recording(encoder) if recorded else encoder
    warnings.warn(f"the fast VAE encoder {problem}; the VAE runs as diffusers has it, which is slower")
    return None


def _try_out(encoder: FrozenEncoder) -> None:
    """Both ways with a small image, so that kernels that cannot be compiled are found now and not in the first step."""
    weight = encoder.vae.encoder.conv_in.weight
    pixels = torch.zeros(1, weight.shape[1], SMALL, SMALL, device=weight.device, requires_grad=True)
    with torch.enable_grad():
        encoder(pixels).sum().backward()


def recording(encoder: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The same function, launched as CUDA graphs once it has been called a few times with one shape."""
    replayed = Replayed(lambda pixels: (encoder(pixels),), "the VAE encoder", differentiable=True)
    return lambda pixels: replayed(pixels)[0]
