"""What the teacher sees and wants: a noised batch, its denoising in one step, and sampled to the end."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..distillation import NoisyDraw, PromptedTeacher
from ..teachers import Teacher
from .embeddings import Views

SAMPLING_STEPS = 50


@torch.no_grad()
def preview(teacher: Teacher, prompted: PromptedTeacher, draw: NoisyDraw, views: Views, count: int) -> dict[str, Any]:
    """threestudio's `guidance_eval` dictionary for the first `count` images.

    bs, noise_levels, texts; imgs_noisy, imgs_1step (one DDIM step on), imgs_1orig (the clean image predicted at once)
    and imgs_final (DDIM, eta 1, to the end), [count,H,W,3] in [0,1]. Uses its own random numbers: looking changes
    nothing.
    """
    schedule = teacher.schedule
    generator = torch.Generator().manual_seed(0)
    stride = max(schedule.steps // SAMPLING_STEPS, 1)
    noisy, t = draw.noisy[:count], draw.t[:count]
    eps = prompted.guided(noisy, t).guided
    step = schedule.ddim_step(noisy, eps, t, t - stride)
    latents, now = noisy, t
    for _ in range(int(draw.t_host[:count].max()) // stride + 1):
        eps_now = eps if now is t else prompted.guided(latents, now.clamp(min=0)).guided
        fresh = torch.randn(latents.shape, generator=generator).to(latents)
        moved = schedule.ddim_step(latents, eps_now, now.clamp(min=0), now - stride, eta=1.0, noise=fresh)
        latents = torch.where((now >= 0).view(-1, 1, 1, 1), moved, latents)
        now = now - stride
    levels = [float(level) / schedule.steps for level in draw.t_host[:count]]
    return {
        "bs": count,
        "noise_levels": levels,
        "texts": [_caption(level, views, i) for i, level in enumerate(levels)],
        "imgs_noisy": _images(teacher, noisy),
        "imgs_1step": _images(teacher, step),
        "imgs_1orig": _images(teacher, schedule.x0_from_eps(noisy, eps, t)),
        "imgs_final": _images(teacher, latents),
    }


def _images(teacher: Teacher, latents: Tensor) -> Tensor:
    return teacher.decode(latents).permute(0, 2, 3, 1)


def _caption(level: float, views: Views, i: int) -> str:
    e, a, d = (float(v[i]) for v in (views.elevation, views.azimuth, views.camera_distances))
    return f"n{level:.02f}|e{e:.01f}|a{a:.01f}|d{d:.02f}"
