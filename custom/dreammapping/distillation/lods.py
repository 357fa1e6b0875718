"""Learn to Optimize Denoising Scores, Yang et al. 2024 (ECCV, arXiv 2312.04820).

    code  : R = (e_alpha + S (e_c - e_alpha) - eps) / S = e_c - (1 - 1/S) e_alpha - eps / S
    table1: R = e_c - e_alpha + s (e_c - e_u)                              DreamMapping's Table 1 inside its eq. 10
    L_psi   = |e_alpha(x_t', t') - eps'|^2                                 at its own t' ~ U{0..T-1} and noise eps'

SDS, divided by its guidance scale, with a learned e_alpha in the place of the anchor e_u. Two variants:

    embedding: e_alpha = eps_phi(x_t, t, y_psi), y_psi [L,E] a copy of the anchor's embedding that is trained through the
               frozen network; one for all views and t
    lora     : e_alpha = the teacher with LoRA at half strength, on the anchor's text (Table 1 writes y); no camera

S is the guidance scale as the usual convention counts it: `guidance_scale` with cfg_convention usual, one more than it
with seed. It may be infinite: then R = e_c - e_alpha. The public code (S = 1000) adds no further s (e_c - e_u); there
`table1` differs, where guidance_scale gives s, and U is the limit of infinite S. Perp-Neg acts on s (e_c - e_u) only.

The residual uses psi from before the step's update. Both variants cost 3 forwards and 1 backward in mode code, one
forward more in mode table1. On a teacher that predicts v or x_0, the embedding learns by the noise that follows from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from .auxiliary import AuxiliaryUpdate
from .cfg import seed_scale
from .draw import NoisyDraw, draw_training_pairs
from .lora_score import CameraCondition, LoraScore
from .loss import LossContext, ScoreLoss, ScoreResult, register_loss
from .teacher import Cost, PromptedTeacher

LEARNING_RATES = {"embedding": 1e-3, "lora": 5e-7}
"""Of the public configurations: the embedding's for Gaussians, the LoRA's for a radiance field."""


@dataclass
class LODSSettings:
    """Options of LODS; the defaults are the public code's."""

    variant: Literal["embedding", "lora"] = "embedding"
    mode: Literal["code", "table1"] = "code"
    lora_rank: int = 4
    lora_scale: float = 0.5
    """Strength of the LoRA, in training too."""
    psi_steps: int = 1
    """Updates of psi per step."""
    psi_opt: Literal["adamw", "adam", "sgd"] = "adamw"
    psi_lr: float | None = None
    """None: 0.001 for the embedding, 5e-7 for the LoRA."""
    psi_betas: tuple[float, float] = (0.9, 0.99)
    psi_eps: float = 1e-15
    psi_weight_decay: float = 0.01

    def __post_init__(self) -> None:
        if self.lora_rank < 1 or self.psi_steps < 0:
            raise ConfigError("loss: lora_rank must be at least 1, psi_steps at least 0")


@dataclass(frozen=True)
class LODSAnswers:
    """What LODS learns from the networks about one draw; predictions [B,C,h,w]."""

    cond: Tensor
    """e_c."""
    learned: Tensor
    """e_alpha."""
    term: Tensor | None
    """s (e_c - e_u) in mode table1."""
    teacher: PromptedTeacher
    """With y_psi in the place of the anchor, in the variant embedding."""


@register_loss("lods")
class LODS(ScoreLoss):
    """R = e_c - (1 - 1/S) e_alpha - eps / S, e_alpha trained to denoise the rendered images."""

    Settings = LODSSettings

    def __init__(self, settings: LODSSettings, context: LossContext) -> None:
        super().__init__(settings, context)
        s = settings
        self.score: LoraScore | None = None
        if s.variant == "lora":
            self.score = LoraScore(context, model=None, rank=s.lora_rank, scale=s.lora_scale, camera=CameraCondition())
            self.lora = self.score.adapter
        else:
            # [1,L,E] from the first step on: only the prompts know its size.
            self.embedding = nn.Parameter(torch.empty(0))
        rate = LEARNING_RATES[s.variant] if s.psi_lr is None else s.psi_lr
        self.update = AuxiliaryUpdate(s.psi_opt, rate, s.psi_betas, s.psi_eps, s.psi_weight_decay, s.psi_steps)

    def cost(self, t: int, step: int, guided: int = 2) -> Cost:
        s = self.settings
        return Cost((1 if s.mode == "code" else guided) + 1 + max(s.psi_steps, 1), s.psi_steps)

    def ask(self, draw: NoisyDraw, teacher: PromptedTeacher) -> LODSAnswers:
        x, t, anchor = draw.noisy, draw.t, teacher.anchor
        guided = teacher.guided(x, t) if self.settings.mode == "table1" else None
        names = () if guided else ("cond",)  # e_c, if it is not there yet, comes with e_alpha where that is possible
        if self.score is None:
            teacher = teacher.replace(anchor, self.anchor_embedding(teacher))
            eps = teacher.predict(x, t, *names, anchor)
            learned = eps[anchor]
        else:
            eps = teacher.predict(x, t, *names) if names else {}
            learned = self.score.eps(x, t, teacher.embedding(anchor), None)
        cond, term = (guided.cond, guided.term) if guided else (eps["cond"], None)
        return LODSAnswers(cond, learned, term, teacher)

    def forward(self, draw: NoisyDraw, answers: LODSAnswers) -> ScoreResult:
        unconditional = answers.cond - answers.learned
        if answers.term is None:
            residual = unconditional + (answers.learned - draw.noise) / usual_scale(answers.teacher)
        else:
            residual = unconditional + answers.term
        diagnostics = {
            "norm_unconditional": unconditional.square().mean().sqrt(),
            "cos_anchor_eps": torch.cosine_similarity(answers.learned.flatten(1), draw.noise.flatten(1)).mean(),
        }
        return ScoreResult(residual, {self.settings.variant: self.psi_loss(draw, answers.teacher)}, diagnostics)

    def psi_loss(self, draw: NoisyDraw, teacher: PromptedTeacher) -> Tensor:
        """L_psi, the mean squared error of e_alpha at fresh steps and noise, with graph to psi."""
        if self.score is not None:
            return self.score.lesson(draw.clean, teacher.embedding(teacher.anchor), None).loss
        pair = draw_training_pairs(draw.clean, teacher.schedule, self.context.generator)
        eps = teacher.predict(pair.noisy, pair.t, teacher.anchor, differentiable=True)[teacher.anchor]
        return (eps - pair.noise).square().mean()

    def anchor_embedding(self, teacher: PromptedTeacher) -> Tensor:
        """y_psi [1,L,E]; in the very first step, a copy of the anchor's embedding for the first image."""
        if not self.embedding.numel():
            start = teacher.embedding(teacher.anchor)[:1].detach()
            self.embedding.data = start.to(torch.promote_types(start.dtype, torch.float32), copy=True)
        return self.embedding

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        saved = state_dict.get(f"{prefix}embedding")
        if saved is not None and self.score is None:
            self.embedding.data = torch.empty_like(saved, device=self.embedding.device)
        super()._load_from_state_dict(state_dict, prefix, *args)


def usual_scale(teacher: PromptedTeacher) -> float:
    """S > 0. Raises ConfigError."""
    scale = seed_scale(teacher.guidance_scale, teacher.convention) + 1
    if not scale > 0:
        raise ConfigError(
            f"loss lods divides by the guidance scale, which is {scale} in the usual convention; "
            "set system.guidance.guidance_scale to a positive number (the public code has 1000)"
        )
    return scale
