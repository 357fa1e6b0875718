"""Score Distillation Sampling, Poole et al. 2023 (DreamFusion)."""

from __future__ import annotations

from torch import Tensor

from .cfg import Guided
from .draw import NoisyDraw
from .loss import ScoreLoss, register_loss


@register_loss("sds")
class SDS(ScoreLoss):
    """R = e_cfg(x_t, t, y) - eps (DreamFusion eq. 3; DreamMapping eq. 9)."""

    def residual(self, draw: NoisyDraw, answers: Guided) -> Tensor:
        return answers.guided - draw.noise
