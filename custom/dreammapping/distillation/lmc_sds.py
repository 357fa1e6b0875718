"""LMC-SDS, Alldieck et al. 2024 (Score Distillation Sampling with Learned Manifold Corrective, arXiv 2401.05293).

    U = e_c - e_b,  e_b = (x_t - a b_psi) / sig            R = U + s (e_c - e_u)     (DreamMapping Table 1 in eq. 10)

SDS pulls an image x_0 towards the teacher's one-step estimate of it, which at large t is a blurred image, so R has to
be loud for details to survive. b_psi blurs x_0 as the teacher does at that t and takes its place; where b_psi is the
identity, e_b = eps and this is SDS. It is trained once per teacher (`correction/train.py`) and frozen here.

No code was published. Assumed: b_psi reads x_0, as the source's pairs (image, denoised image) do; Table 1 writes
b_psi(x_t, t), which a corrector trained with `--reads noisy` is. Its target is the teacher's estimate for the image's
own caption without guidance. Its shape, the weighting of its training and the guidance scale are ours.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..correction.card import advice
from ..correction.corrector import load_corrector
from ..errors import ConfigError
from .cfg import Guided
from .draw import NoisyDraw
from .loss import LossContext, ScoreLoss, register_loss


@dataclass
class LMCSettings:
    """Options of LMC-SDS."""

    corrector: str | None = None
    """Folder with corrector.safetensors and card.json. Must be given."""
    any_weights: bool = False
    """Accept a corrector that was trained for other weights than the teacher's."""


@register_loss("lmc-sds")
class LMCSDS(ScoreLoss):
    """R = e_cfg - e_b, e_b the noise that the image blurred by b_psi would leave in x_t."""

    Settings = LMCSettings

    def __init__(self, settings: LMCSettings, context: LossContext) -> None:
        super().__init__(settings, context)
        teacher, name = context.teacher, getattr(context.teacher, "name", "the teacher")
        if not settings.corrector:
            raise ConfigError(
                f"loss lmc-sds needs a corrector, and system.guidance.loss.corrector is not set. {advice(name)}"
            )
        self.corrector = load_corrector(
            settings.corrector,
            teacher=name,
            fingerprint=getattr(teacher, "fingerprint", ""),
            latent_shape=context.latent_shape,
            steps=teacher.schedule.steps,
            any_weights=settings.any_weights,
        )

    def residual(self, draw: NoisyDraw, answers: Guided) -> Tensor:
        estimate = self.corrector(draw.clean, draw.noisy, draw.t, draw.alpha_bar)
        return answers.guided - self.context.teacher.schedule.eps_from_x0(draw.noisy, estimate, draw.t)
