"""Classifier Score Distillation, Yu et al. 2024 (arXiv 2310.19415).

    code  :  R = k_c e_c + k_n e_n + k_0 e_0      k_c + k_n + k_0 = 0: no eps, no guidance scale      (the public code)
    table1:  R = e_c - lam_s e_n + s (e_c - e_u)                          (DreamMapping, Table 1, inside its eq. 10)

e_n is the prediction for the negative prompt, e_0 for the empty one, e_u for the anchor. The code's R is that of table1
with lam_s = 1, divided by 1 + s, where k_n = -1 / (1 + s) and k_0 = -s / (1 + s); it is so much smaller.
With Perp-Neg, code adds `k_perp` times the directions it finds, relative to the anchor (public code: `negative`). The
public code's first stage also divides the whole gradient by its norm, which is left out here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from ..errors import ConfigError
from .cfg import Guided
from .draw import NoisyDraw
from .loss import LossContext, ScoreLoss, register_loss
from .schedule import Schedule, scheduled
from .teacher import Cost, PromptedTeacher


@dataclass
class CSDSettings:
    """Options of CSD; the defaults are its public code's first stage (csd-if.yaml), of 10000 steps.

    Its second stage, on Stable Diffusion: k_n [0, -1, -0.5, 10000], k_0 [0, 0, -0.5, 10000].
    """

    mode: Literal["code", "table1"] = "code"
    k_c: Schedule = 1.0
    k_n: Schedule = field(default_factory=lambda: [0, 0.0, -1.0, 5000])
    k_0: Schedule = field(default_factory=lambda: [0, -1.0, 0.0, 5000])
    k_perp: Schedule = 3.0
    """Weight of Perp-Neg's directions; without Perp-Neg it has no effect."""
    lam_s: Schedule = 1.0
    """Only for table1. DreamMapping calls it "iteration steps related" and gives no values."""

    def __post_init__(self) -> None:
        for weight in (self.k_perp, self.lam_s):
            scheduled(weight, 0)  # finds mistakes before the run does
        coefficients = (self.k_c, self.k_n, self.k_0)
        # Their sum is piecewise linear in the step, so that its corners tell everything.
        corners = {0.0, *(k[i] for k in coefficients if isinstance(k, list) and len(k) == 4 for i in (0, 3))}
        for step in sorted(corners):
            total = sum(scheduled(k, step) for k in coefficients)
            if not math.isclose(total, 0.0, abs_tol=1e-6):
                raise ConfigError(f"loss: k_c + k_n + k_0 is {total:g} at step {step:g}; it must be 0 at every step")


@register_loss("csd")
class CSD(ScoreLoss):
    """R = k_c e_c + k_n e_n + k_0 e_0: the direction towards the prompt alone."""

    Settings = CSDSettings
    embeddings = ("negative", "empty")

    def __init__(self, settings: CSDSettings, context: LossContext) -> None:
        super().__init__(settings, context)
        self.others = self.embeddings if settings.mode == "code" else ("negative",)

    def cost(self, t: int, step: int, guided: int = 2) -> Cost:
        # Beside the anchor and the prompt there is one more text, whichever of the two the anchor is.
        return Cost(guided + 1)

    def ask(self, draw: NoisyDraw, teacher: PromptedTeacher) -> Guided:
        return teacher.guided(draw.noisy, draw.t, *self.others)

    def residual(self, draw: NoisyDraw, answers: Guided) -> Tensor:
        s, eps = self.settings, answers.others
        if s.mode == "table1":
            return answers.guided - scheduled(s.lam_s, draw.step) * eps["negative"]
        k_c, k_n, k_0, k_perp = (scheduled(k, draw.step) for k in (s.k_c, s.k_n, s.k_0, s.k_perp))
        plain = k_c * answers.cond + k_n * eps["negative"] + k_0 * eps["empty"]
        return plain if answers.perp_neg is None else plain + k_perp * answers.perp_neg
