"""Asynchronous score distillation, Ma et al. 2024 (ScaleDreamer, eq. 8).

    R = e_cfg(x_t, t, y) - e(x_t', t', y),   t' = t + ratio (t - t_min) u,  u ~ U(0,1),  x_t' made with the same eps

The teacher at a slightly later step stands in for a copy trained on the rendered images (VSD's e_lora): no training.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ConfigError
from ..processes import Rows
from ..transfers import to_device
from .cfg import Guided
from .draw import NoisyDraw
from .loss import ScoreLoss, register_loss
from .teacher import Cost, PromptedTeacher


@dataclass
class AsynchronousSettings:
    """Options; the defaults are ScaleDreamer's."""

    shift_ratio: float = 0.1
    """How far the later step may lie ahead, as a share of t - min_step. 0: the same step."""
    min_step: int = 20
    """Steps up to this one are not shifted."""

    def __post_init__(self) -> None:
        if self.shift_ratio < 0 or self.min_step < 0:
            raise ConfigError("loss: shift_ratio and min_step must not be negative")


@register_loss("asynchronous")
class Asynchronous(ScoreLoss):
    """R = e_cfg(x_t, t) - e_c(x_t', t')."""

    Settings = AsynchronousSettings

    def cost(self, t: int, step: int, guided: int = 2) -> Cost:
        return Cost(guided + 1)

    def ask(self, draw: NoisyDraw, teacher: PromptedTeacher) -> tuple[Guided, Tensor]:
        later = to_device(self.later(draw.t_host, teacher.schedule.steps), draw.clean.device)
        noisier = teacher.schedule.add_noise(draw.clean, draw.noise, later)
        return teacher.guided(draw.noisy, draw.t), teacher.predict(noisier, later, "cond")["cond"]

    def residual(self, draw: NoisyDraw, answers: tuple[Guided, Tensor]) -> Tensor:
        now, later = answers
        return now.guided - later

    def later(self, t: Tensor, total: int) -> Tensor:
        """t' [B] for t [B], both on the CPU."""
        s = self.settings
        rows = Rows.of_process(len(t))
        share = rows.take(torch.rand(rows.total, generator=self.context.generator))
        ahead = s.shift_ratio * (t - s.min_step).clamp(min=0) * share
        return (t + ahead.round().long()).clamp(max=total - 1)
