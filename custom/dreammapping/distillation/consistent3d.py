"""Consistency Distillation Sampling, Wu et al. 2024 (Consistent3D).

    x_1 = x_0 noised to t_1 with one fixed noise;   x_2 = a DDIM jump from x_1 down to t_2 along e_cfg(x_1, t_1)
    R   = e_cfg(x_1, t_1) - e_cfg(x_2, t_2)                               mode code: theirs, the default
    R   = e_cfg(x_1, t_1) - e_c(x_2, t_2)                                 mode table1

DreamMapping's Table 1 keeps e_c(t_1) - e_c(t_2) as the unconditional term and adds s C(t_1); in the authors' code the
guidance of the two steps is subtracted too, s (C(t_1) - C(t_2)). Their t_1 and t_2 are the timesteps `consistency`.
Their guidance_scale has the seed convention; their code has no Perp-Neg, here it acts in every e_cfg.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..errors import ConfigError
from ..transfers import to_device
from .cfg import Guided
from .draw import NoisyDraw
from .loss import LossContext, ScoreLoss, register_loss
from .teacher import Cost, PromptedTeacher


@dataclass
class Consistent3DSettings:
    """Options of Consistent3D; the defaults are those of its code."""

    mode: Literal["code", "table1"] = "code"
    """Whether the prediction at t_2 is guided."""
    share_noise: bool = True
    """One noise for all images and steps, saved with the run. False: fresh noise each time."""
    gap: int = 200
    """t_1 - t_2 where the timesteps make no pairs (t_2 stops at 0); the mean of theirs."""

    def __post_init__(self) -> None:
        if self.gap < 0:
            raise ConfigError(f"loss: gap is {self.gap}; t_2 = t_1 - gap must not lie above t_1")


@dataclass(frozen=True)
class Consistent3DAnswers:
    """What Consistent3D learns from the teacher about one draw."""

    guided: Guided
    """At (x_1, t_1)."""
    target: Tensor
    """[B,C,h,w] the prediction at (x_2, t_2)."""


@register_loss("consistent3d")
class Consistent3D(ScoreLoss):
    """R = e_cfg(x_1, t_1) - e_cfg(x_2, t_2), x_2 one ODE step from x_1."""

    Settings = Consistent3DSettings

    def __init__(self, settings: Consistent3DSettings, context: LossContext) -> None:
        super().__init__(settings, context)
        if settings.share_noise:
            self.register_buffer("noise", torch.randn(1, *context.latent_shape, generator=context.generator))

    def cost(self, t: int, step: int, guided: int = 2) -> Cost:
        return Cost(2 * guided if self.settings.mode == "code" else guided + 1)

    def ask(self, draw: NoisyDraw, teacher: PromptedTeacher) -> Consistent3DAnswers:
        noise = self.noise.to(draw.clean) if self.settings.share_noise else draw.noise
        earlier = (draw.t_host - self.settings.gap).clamp(min=0) if draw.t_earlier is None else draw.t_earlier
        earlier = to_device(earlier, draw.clean.device)
        noisy = teacher.schedule.add_noise(draw.clean, noise, draw.t)
        guided = teacher.guided(noisy, draw.t)
        moved = teacher.schedule.ddim_step(noisy, guided.guided, draw.t, earlier)
        if self.settings.mode == "table1":
            return Consistent3DAnswers(guided, teacher.predict(moved, earlier, "cond")["cond"])
        return Consistent3DAnswers(guided, teacher.guided(moved, earlier).guided)

    def residual(self, draw: NoisyDraw, answers: Consistent3DAnswers) -> Tensor:
        return answers.guided.guided - answers.target
