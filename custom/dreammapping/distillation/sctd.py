"""Segmented consistency trajectory distillation, Zhu et al. 2025 (SegmentDreamer, arXiv 2507.05256).

    R = [x_e(from s) - x_e] + (S + 1) [x_e - x_e(from t, guided)],   e <= s <= t, e the start of t's segment of the schedule

x_e is noised with eps; deterministic jumps e -> s -> t with the empty prompt reach x_t. From there x_e(from t, guided) is one guided
jump back to e, x_e(from s) two without guidance, t -> s -> e. Weighted by `snr` this is the paper's gradient.

Assumed: t at a border belongs to the segment that ends there (else e = t and R = 0); s is the middle of e and t, not random; S is the
scale s of e_c + s (e_c - e_u); the jump t -> s takes the anchor's prediction, which the guided call has, all others the empty prompt's.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ConfigError
from ..transfers import to_device
from .cfg import seed_scale
from .draw import NoisyDraw
from .loss import ScoreLoss, register_loss
from .teacher import Cost, PromptedTeacher


@dataclass
class SCTDSettings:
    """Options; the defaults are SegmentDreamer's."""

    segments: int = 5
    """Equal parts of the schedule."""
    split_from: int = 150
    """From this step on the way from e to t has a stop s; before, s = e."""

    def __post_init__(self) -> None:
        if self.segments < 1 or self.split_from < 0:
            raise ConfigError("loss: segments must be at least 1 and split_from not negative")


@register_loss("sctd")
class SCTD(ScoreLoss):
    """R = [x_e(from s) - x_e] + (S + 1) [x_e - x_e(from t, guided)]."""

    Settings = SCTDSettings
    embeddings = ("empty",)

    def cost(self, t: int, step: int, guided: int = 2) -> Cost:
        return Cost(guided + (3 if t >= self.settings.split_from else 2))

    def ask(self, draw: NoisyDraw, teacher: PromptedTeacher) -> tuple[Tensor, Tensor, Tensor, float]:
        """x_e, x_e(from s), x_e(from t, guided) [B,C,h,w] and S."""
        jump, device, t = teacher.schedule.ddim_step, draw.clean.device, draw.t
        e, s = (to_device(x, device) for x in self.earlier(draw.t_host, teacher.schedule.steps))
        split = to_device((draw.t_host >= self.settings.split_from).nonzero()[:, 0], device)
        start = teacher.schedule.add_noise(draw.clean, draw.noise, e)
        eps = teacher.predict(start, e, "empty")["empty"]
        stop = jump(start, eps, e, s)
        if len(split):  # the others are still at e
            onward = teacher.rows(split).predict(stop[split], s[split], "empty")["empty"]
            eps = eps.index_copy(0, split, onward)
        noisy = jump(stop, eps, s, t)
        now = teacher.guided(noisy, t)
        back = jump(noisy, now.uncond, t, s)
        slow = jump(back, teacher.predict(back, s, "empty")["empty"], s, e)
        return start, slow, jump(noisy, now.guided, t, e), seed_scale(teacher.guidance_scale, teacher.convention)

    def residual(self, draw: NoisyDraw, answers: tuple[Tensor, Tensor, Tensor, float]) -> Tensor:
        start, slow, guided, scale = answers
        return (slow - start) + (scale + 1) * (start - guided)

    def earlier(self, t: Tensor, total: int) -> tuple[Tensor, Tensor]:
        """e and s [B] for t [B], all on the CPU."""
        e = (t - 1).clamp(min=0) * self.settings.segments // total * total // self.settings.segments
        return e, torch.where(t >= self.settings.split_from, (e + t) // 2, e)
