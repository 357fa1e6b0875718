"""Stable Score Distillation, Tang et al. 2023 (arXiv 2312.09305).

    r = <e_c, eps> / |eps|^2,  e~ = e_c - r eps            per image: what of e_c the noise does not explain
    code  :  R = C  for t > M,   |C| / |e~| e~  for t <= M                 C = e_c - e_u; no guidance scale
    table1:  R = lam_t e~ + s C,   lam_t = 0 for t > M, |C| / |e~| for t <= M         (DreamMapping, Table 1 and eq. 10)

So below M the code has e~ in the place of C, and table1 beside it. With Perp-Neg, C is the whole direction it gives.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..errors import ConfigError
from .cfg import Guided
from .draw import NoisyDraw
from .loss import ScoreLoss, register_loss


@dataclass
class SSDSettings:
    """Options of SSD."""

    mode: Literal["code", "table1"] = "code"
    threshold: int = 100
    """M, inclusive. 100: PGC-3D's implementation; the authors published none."""

    def __post_init__(self) -> None:
        if self.threshold < 0:
            raise ConfigError(f"loss: threshold is {self.threshold}; it is a timestep and must not be negative")


@register_loss("ssd")
class SSD(ScoreLoss):
    """R = C at large t; what seeks the mode, without the noise and as long as C, at small t."""

    Settings = SSDSettings

    def residual(self, draw: NoisyDraw, answers: Guided) -> Tensor:
        r = inner(answers.cond, draw.noise) / inner(draw.noise, draw.noise)
        seeking = answers.cond - r * draw.noise
        length = (inner(answers.direction, answers.direction) / inner(seeking, seeking).clamp(min=1e-24)).sqrt()
        small = (draw.t <= self.settings.threshold).view_as(draw.alpha_bar)
        if self.settings.mode == "table1":
            return torch.where(small, length, 0.0) * seeking + answers.term
        return torch.where(small, length * seeking, answers.direction)


def inner(x: Tensor, y: Tensor) -> Tensor:
    """<x, y> per image, [B,1,1,1]."""
    return (x * y).sum((1, 2, 3), keepdim=True)
