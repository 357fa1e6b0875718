"""SDS-Bridge, McAllister et al. 2024 (arXiv 2406.09417).

    stage 1:  R = e_cfg - eps                                 SDS
    stage 2:  R = S (e_target - e_source)                     at the same x_t; S is the usual guidance scale

The target is the prompt with words of quality, the source the prompt with words for what is wrong with the renderings:
a bridge from the distribution they have to the one they should have. Stage 2 has no eps, no anchor, no Perp-Neg.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..errors import ConfigError
from .cfg import CFGConvention, Guided, guide, seed_scale
from .draw import NoisyDraw
from .loss import LossContext, ScoreLoss, register_loss
from .teacher import Cost, PromptedTeacher


@dataclass
class BridgeSDSSettings:
    """Options of SDS-Bridge; the texts are its public 2D code's. {prompt} stands for the prompt and its view."""

    target: str = "{prompt}, detailed high resolution, high quality, sharp"
    """The public 3D code adds nothing."""
    source: str = (
        "{prompt}, oversaturated, smooth, pixelated, cartoon, foggy, hazy, blurry, bad structure, noisy, malformed"
    )
    switch_step: int = 20000
    """First step of stage 2. The public code: 20000 of 25000 in 3D, 500 of 1000 in 2D."""
    stage2_scale: float | None = None
    """S of stage 2. None: the guidance scale's (public 2D code); 1 in the public 3D code, with omega = 1."""

    def __post_init__(self) -> None:
        if self.switch_step < 0:
            raise ConfigError(f"loss: switch_step is {self.switch_step}; it must not be negative")


@register_loss("bridge-sds")
class BridgeSDS(ScoreLoss):
    """SDS, then R = S (e_target - e_source)."""

    Settings = BridgeSDSSettings

    def __init__(self, settings: BridgeSDSSettings, context: LossContext) -> None:
        super().__init__(settings, context)
        self.texts = {"target": settings.target, "source": settings.source}

    def cost(self, t: int, step: int, guided: int = 2) -> Cost:
        return Cost(2 if self.bridges(step) else guided)

    def bridges(self, step: int) -> bool:
        """Whether this step belongs to stage 2."""
        return step >= self.settings.switch_step

    def ask(self, draw: NoisyDraw, teacher: PromptedTeacher) -> Guided:
        if not self.bridges(draw.step):
            return teacher.guided(draw.noisy, draw.t)
        eps, scale = teacher.predict(draw.noisy, draw.t, "target", "source"), self.settings.stage2_scale
        if scale is None:
            scale = seed_scale(teacher.guidance_scale, teacher.convention) + 1
        guided = guide(eps["target"], eps["source"], scale, CFGConvention.USUAL)
        return Guided(eps["target"], eps["source"], guided)

    def residual(self, draw: NoisyDraw, answers: Guided) -> Tensor:
        return answers.guided - (answers.uncond if self.bridges(draw.step) else draw.noise)
