"""Noise-Free Score Distillation, Katzir et al. 2024 (arXiv 2310.17590).

    R = delta_D + S (e_c - e_u)        delta_D = e_u for t < 200, else e_u - e_n

e_n is the prediction for a negative prompt, e_u for the anchor (the paper: the empty prompt), S the usual guidance
scale. Since e_cfg = e_u + S (e_c - e_u), R = e_cfg - lam_t e_n with lam_t = 1 for t >= 200 and 0 below, which is its
row in DreamMapping's Table 1: the two forms are one.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..errors import ConfigError
from .cfg import Guided
from .draw import NoisyDraw
from .loss import ScoreLoss, register_loss
from .teacher import Cost, PromptedTeacher


@dataclass
class NFSDSettings:
    """Options of NFSD; the default is the paper's."""

    threshold: int = 200
    """Images with a smaller t have no e_n in R."""

    def __post_init__(self) -> None:
        if self.threshold < 0:
            raise ConfigError(f"loss: threshold is {self.threshold}; it is a timestep and must not be negative")


@register_loss("nfsd")
class NFSD(ScoreLoss):
    """R = e_cfg - lam_t e_n."""

    Settings = NFSDSettings
    embeddings = ("negative",)

    def cost(self, t: int, step: int, guided: int = 2) -> Cost:
        # e_n is asked for every image: t differs within the batch, and one call is better than two. With the anchor
        # `negative` it is there already, and costs nothing.
        return Cost(guided + 1)

    def ask(self, draw: NoisyDraw, teacher: PromptedTeacher) -> Guided:
        return teacher.guided(draw.noisy, draw.t, "negative")

    def residual(self, draw: NoisyDraw, answers: Guided) -> Tensor:
        lam = (draw.t >= self.settings.threshold).to(draw.alpha_bar).view_as(draw.alpha_bar)
        return answers.guided - lam * answers.others["negative"]
