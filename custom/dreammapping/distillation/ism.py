"""Interval Score Matching, Liang et al. 2023 (LucidDreamer).

    x_s = DDIM inversion of x_0 with the empty prompt, from true noise at the first step up to s = t - D
    x_t = one more such jump, from s to t
    R   = e_cfg(x_t, t, y) - eps(x_s, s, empty)                                                    (eq. 9)
        = [e_c(x_t) - eps(x_s)] + s (e_c(x_t) - e_u(x_t))                     (DreamMapping Table 1 inside eq. 10)

The prediction at x_s also makes the jump to x_t, so the interval costs one network call beyond the inversion. Their
anchor is the negative prompt, while inversion reads the empty one; their omega is `snr`, their timesteps `luciddreamer`.
Perp-Neg acts in e_cfg alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import ConfigError
from ..transfers import to_device
from .cfg import Guided
from .draw import NoisyDraw
from .loss import ScoreLoss, register_loss
from .ode import ladder, walk
from .schedule import Schedule, scheduled
from .teacher import Cost, PromptedTeacher


@dataclass
class ISMSettings:
    """Options of ISM; the defaults are those of LucidDreamer's code."""

    interval: Schedule = field(default_factory=lambda: [0, 100, 80, 1500])
    """D, in steps, rounded down. A number or [start_step, start_value, end_value, end_step]."""
    inversion_jump: int = 200
    """Steps per jump of the inversion; the last one up to s is shorter."""
    first_step: int = 1
    """Where the inversion starts, and the smallest s."""

    def __post_init__(self) -> None:
        if self.inversion_jump < 1 or self.first_step < 0:
            raise ConfigError("loss: inversion_jump must be at least 1 and first_step at least 0")
        if scheduled(self.interval, 0) < 0 or scheduled(self.interval, 10**9) < 0:
            raise ConfigError(f"loss: interval is {self.interval}; s = t - interval must not lie above t")


@dataclass(frozen=True)
class ISMAnswers:
    """What ISM learns from the teacher about one draw."""

    guided: Guided
    """At x_t."""
    target: Tensor
    """[B,C,h,w] eps(x_s, s, empty)."""


@register_loss("ism")
class ISM(ScoreLoss):
    """R = e_cfg(x_t, t) - eps(x_s, s, empty), x_t and x_s on one inverted path."""

    Settings = ISMSettings
    embeddings = ("empty",)

    def cost(self, t: int, step: int, guided: int = 2) -> Cost:
        jumps = len(ladder(*self.steps(torch.tensor([t]), step), self.settings.inversion_jump)) - 1
        return Cost(jumps + 1 + guided)

    def steps(self, t: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Where the inversion starts and s, for t; [B] each, on the CPU."""
        first = t.clamp(max=self.settings.first_step)
        return first, torch.maximum(t - int(scheduled(self.settings.interval, step)), first)

    def ask(self, draw: NoisyDraw, teacher: PromptedTeacher) -> ISMAnswers:
        start, s = self.steps(draw.t_host, draw.step)
        noisy = teacher.schedule.add_noise(draw.clean, draw.noise, to_device(start, draw.clean.device))
        noisy = walk(noisy, ladder(start, s, self.settings.inversion_jump), unconditional, teacher)
        s = to_device(s, noisy.device)
        target = unconditional(noisy, s, teacher)
        return ISMAnswers(teacher.guided(teacher.schedule.ddim_step(noisy, target, s, draw.t), draw.t), target)

    def residual(self, draw: NoisyDraw, answers: ISMAnswers) -> Tensor:
        return answers.guided.guided - answers.target


def unconditional(noisy: Tensor, t: Tensor, teacher: PromptedTeacher) -> Tensor:
    """eps(x, t, empty)."""
    return teacher.predict(noisy, t, "empty")["empty"]
