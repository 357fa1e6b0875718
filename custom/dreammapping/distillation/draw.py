"""The draw: one batch of noised latents, with every ingredient under its name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class NoisyDraw:
    """One noised batch. B images, C latent channels, h x w latent pixels."""

    clean: Tensor
    """[B,C,h,w] x_0, detached."""
    noise: Tensor
    """[B,C,h,w] eps, the noise that was added (with its offset, if any)."""
    noisy: Tensor
    """[B,C,h,w] x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps, detached."""
    t: Tensor
    """[B] integer step on the latents' device."""
    t_host: Tensor
    """[B] the same on the CPU, for decisions that must not wait for the device."""
    alpha_bar: Tensor
    """[B,1,1,1] alpha_bar_t."""
    step: int = 0
    """The optimization step, for annealed coefficients."""
    context: Mapping[str, Tensor] = field(default_factory=dict)
    """Per-image extras a loss may condition on, e.g. `c2w` [B,4,4], `mvp_mtx` [B,4,4]."""
    t_earlier: Tensor | None = None
    """[B] integer, on the CPU: the less noisy step t is paired with; None where the timesteps make no pairs."""


def draw_noise(like: Tensor, generator: torch.Generator, offset: float = 0.0) -> Tensor:
    """N(0, I) of the shape of `like`, drawn on the CPU so that every device sees the same numbers.

    `offset` adds one N(0, offset^2) value per channel, shared by the batch (LucidDreamer uses 0.1).
    """
    noise = torch.randn(like.shape, generator=generator, dtype=torch.float32)
    if offset:
        noise = noise + offset * torch.randn(1, like.shape[1], 1, 1, generator=generator)
    return to_device(noise, like.device).to(like.dtype)


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor to `device` without waiting for the work queued there (a pageable copy would)."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)
