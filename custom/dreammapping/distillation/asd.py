"""Adversarial Score Distillation, Wei et al. 2023 (arXiv 2312.00739). Another ASD, ScaleDreamer's, trains nothing.

    L_lora = |e_lora - eps'|^2 + gamma |e_lora - q|^2      at x_t', t';  q = eps_phi(x_t', t', y), frozen
    R      = e_cfg(x_t, t, y) - e_lora(x_t, t, y, c)

The copy is the discriminator of a GAN: it draws near to the rendered images and, for gamma < 0, away from what the
teacher would say of them. The loss is least where e_lora = (E[eps' | x_t'] + gamma q) / (1 + gamma). gamma = 0 is VSD.
At gamma = -1, the public code's default, the squares cancel and nothing bounds the loss from below; the code's
configuration for Gaussians, whose values are the defaults here, has -0.75.

Code and Table 1 agree: U = e_c - e_lora. As in the code:
- a copy that predicts v learns away from sqrt(alpha_bar) q - sqrt(1 - alpha_bar) x_0;
- with Perp-Neg q is e_c + sum_i w_i perp(e_i, e_c), without the anchor.

The public code asks 6 forwards and 1 backward per image. Two of them are the copy with and without its camera, mixed
with a scale of 1, so one of the two does nothing: here there are 5, and 6 if lora_guidance_scale is not 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ConfigError
from .cfg import CFGConvention, guide
from .draw import NoisyDraw
from .loss import register_loss
from .teacher import Cost, PromptedTeacher
from .vsd import VSD, VSDAnswers, VSDSettings


@dataclass
class ASDSettings(VSDSettings):
    """VSD's options and the discriminator's."""

    gamma: float = -0.75
    """Weight of the teacher's answer in L_lora. At least -1; the public code has -0.75 for Gaussians, else -1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.gamma >= -1:
            raise ConfigError(
                f"loss: gamma is {self.gamma}; it must be at least -1, or the copy learns only to be far from the teacher"
            )


@register_loss("asd")
class ASD(VSD):
    """R = e_cfg - e_lora, e_lora trained towards the rendered images and away from the teacher."""

    Settings = ASDSettings

    def cost(self, t: int, step: int, guided: int = 2) -> Cost:
        without = super().cost(t, step, guided)
        lessons = without.forwards - guided - self.score.forwards
        return Cost(without.forwards + (lessons * (guided - 1) if self.settings.gamma else 0), without.backwards)

    def lora_loss(self, draw: NoisyDraw, answers: VSDAnswers) -> Tensor:
        times, gamma = self.settings.lora_timesteps, self.settings.gamma
        lesson = self.score.lesson(draw.clean, answers.text, answers.camera, times)
        if not gamma:
            return lesson.loss
        q = self.teacher_output(lesson.draw, answers.teacher.repeat(times))
        return lesson.loss + gamma * (lesson.output - q).square().mean()

    def teacher_output(self, draw: NoisyDraw, teacher: PromptedTeacher) -> Tensor:
        """q [B,C,h,w] for the draw's images, as the kind of prediction that the copy makes; without graph."""
        eps = teacher.predict(draw.noisy, draw.t, "cond", *teacher.negatives)
        negatives = [eps[name] for name in teacher.negatives]
        zero = torch.zeros_like(eps["cond"])
        q = guide(eps["cond"], zero, 0.0, CFGConvention.SEED, negatives, teacher.perp_neg_weights)
        kind, schedule = self.copy.prediction_type, teacher.schedule
        if kind == "sample":  # the code has no such copies
            return schedule.x0_from_eps(draw.noisy, q, draw.t)
        return schedule.target(kind, draw.clean, q, draw.t)
