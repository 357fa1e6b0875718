"""The draw: one batch of noised latents, with every ingredient under its name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..processes import Rows
from ..transfers import to_device
from .noise_schedule import NoiseSchedule


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
    t_whole: Tensor | None = None
    """[processes * B] t_host of the whole batch, by rank; None unless it is the step's own draw."""

    @classmethod
    def noised(
        cls,
        clean: Tensor,
        noise: Tensor,
        t_host: Tensor,
        schedule: NoiseSchedule,
        step: int = 0,
        context: Mapping[str, Tensor] | None = None,
        t_earlier: Tensor | None = None,
    ) -> NoisyDraw:
        """From x_0, eps [B,C,h,w] and t [B] on the CPU."""
        t = to_device(t_host.contiguous(), clean.device)
        noisy = schedule.add_noise(clean, noise, t)
        return cls(clean, noise, noisy, t, t_host, schedule.at(t, clean), step, context or {}, t_earlier)


def draw_training_pairs(
    clean: Tensor, schedule: NoiseSchedule, generator: torch.Generator, times: int = 1
) -> NoisyDraw:
    """What a score model learns `clean` [B,C,h,w] from: `times` batches in a row, each with its own t' ~ U{0..T-1} and
    noise eps'."""
    rows = Rows.of_process(len(clean))
    clean = clean.repeat(times, 1, 1, 1)
    t_host = rows.take(torch.randint(0, schedule.steps, (rows.total * times,), generator=generator), times)
    noise = torch.randn((rows.total * times, *clean.shape[1:]), generator=generator)
    return NoisyDraw.noised(clean, to_device(rows.take(noise, times), clean.device).to(clean.dtype), t_host, schedule)


def draw_noise(like: Tensor, generator: torch.Generator, offset: float = 0.0, rows: Rows | None = None) -> Tensor:
    """N(0, I) of the shape of `like`, drawn on the CPU so that every device sees the same numbers.

    `offset` adds one N(0, offset^2) value per channel, shared by the batch (LucidDreamer uses 0.1). `rows` are those of the
    whole batch that `like` [B,...] holds, None this process's: the noise of the whole batch is drawn, and theirs returned.
    """
    rows = rows or Rows.of_process(len(like))
    noise = rows.take(torch.randn((rows.total, *like.shape[1:]), generator=generator, dtype=torch.float32))
    if offset:
        noise = noise + offset * torch.randn(1, like.shape[1], 1, 1, generator=generator)
    return to_device(noise, like.device).to(like.dtype)
