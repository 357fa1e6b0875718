"""Variational Score Distillation, Wang et al. 2023 (ProlificDreamer).

    L_lora = |e_lora(x_t', t', y, c) - eps'|^2      a copy of the teacher learns the rendered images (eq. 9)
    R      = e_cfg(x_t, t, y) - e_lora(x_t, t, y, c)                                               (eq. 10)

The copy knows the camera c and reads the prompt without its view; it learns at its own t' ~ U{0..T-1} and noise eps'.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ..errors import ConfigError
from .auxiliary import AuxiliaryUpdate
from .cfg import Guided
from .draw import NoisyDraw
from .lora_score import CameraCondition, LoraScore
from .loss import LossContext, ScoreLoss, ScoreResult, register_loss
from .teacher import Cost, PromptedTeacher


@dataclass
class VSDSettings:
    """Options of VSD; the defaults are ProlificDreamer's, in threestudio's configuration."""

    lora_model: str | None = None
    """Model the copy starts from; None: the teacher's own weights (half the memory). ProlificDreamer: SD 2.1 (v)."""
    lora_rank: int = 4
    lora_guidance_scale: float = 1.0
    """Guidance towards the camera: e_none + S (e_camera - e_none). 1 is e_camera alone and saves a forward pass."""
    lora_timesteps: int = 1
    """Pairs (t', eps') per image in L_lora."""
    camera_condition: Literal["extrinsics", "mvp", "none"] = "extrinsics"
    """extrinsics: camera-to-world; mvp: world-to-clip; none: the copy does not know the camera."""
    camera_dropout: float = 0.1
    """Chance per image that L_lora hides the camera. 0 to 1."""
    lora_steps: int = 1
    """Updates of the copy per step (K)."""
    lora_opt: Literal["adamw", "adam", "sgd"] | None = "adamw"
    """None: L_lora is handed out, and the optimizer of the whole system trains the copy."""
    lora_lr: float = 1e-4
    lora_betas: tuple[float, float] = (0.9, 0.99)
    lora_weight_decay: float = 0.01

    def __post_init__(self) -> None:
        if self.lora_guidance_scale != 1 and self.camera_condition == "none":
            raise ConfigError("loss: lora_guidance_scale guides towards a camera; with camera_condition none it is 1")
        if self.lora_rank < 1 or self.lora_timesteps < 1 or self.lora_steps < 0:
            raise ConfigError("loss: lora_rank and lora_timesteps must be at least 1, lora_steps at least 0")
        if not 0 <= self.camera_dropout <= 1:
            raise ConfigError(f"loss: camera_dropout is {self.camera_dropout}; it must lie between 0 and 1")


@dataclass(frozen=True)
class VSDAnswers:
    """What VSD learns from the networks about one draw."""

    guided: Guided
    """Of the teacher, for the view-dependent prompt."""
    learned: Tensor
    """[B,C,h,w] e_lora at the same x_t and t."""
    text: Tensor
    """[1 or B,L,E] the prompt without its view, which the copy reads."""
    camera: Tensor | None
    """[B,16]."""
    teacher: PromptedTeacher
    """For what the copy learns from it (ASD)."""


@register_loss("vsd")
class VSD(ScoreLoss):
    """R = e_cfg - e_lora, e_lora trained to denoise the rendered images."""

    Settings = VSDSettings
    embeddings = ("cond_no_view",)

    def __init__(self, settings: VSDSettings, context: LossContext) -> None:
        super().__init__(settings, context)
        s = settings
        camera = CameraCondition(s.camera_condition, s.camera_dropout, s.lora_guidance_scale)
        self.score = LoraScore(context, model=s.lora_model, rank=s.lora_rank, camera=camera)
        self.copy, self.lora = self.score.copy, self.score.adapter
        if s.lora_opt is not None:
            self.update = AuxiliaryUpdate(
                s.lora_opt, s.lora_lr, s.lora_betas, weight_decay=s.lora_weight_decay, steps=s.lora_steps
            )

    def cost(self, t: int, step: int, guided: int = 2) -> Cost:
        s = self.settings
        updates = 1 if s.lora_opt is None else s.lora_steps
        return Cost(guided + self.score.forwards + s.lora_timesteps * max(updates, 1), s.lora_timesteps * updates)

    def ask(self, draw: NoisyDraw, teacher: PromptedTeacher) -> VSDAnswers:
        text, camera = teacher.embedding("cond_no_view"), self.score.camera(draw.context, draw.clean)
        learned = self.score.eps(draw.noisy, draw.t, text, camera)
        return VSDAnswers(teacher.guided(draw.noisy, draw.t), learned, text, camera, teacher)

    def forward(self, draw: NoisyDraw, answers: VSDAnswers) -> ScoreResult:
        residual = answers.guided.guided - answers.learned
        unconditional = answers.guided.cond - answers.learned
        diagnostics = {
            "norm_unconditional": unconditional.square().mean().sqrt(),
            "norm_guidance": answers.guided.term.square().mean().sqrt(),
        }
        return ScoreResult(residual, {"lora": self.lora_loss(draw, answers)}, diagnostics)

    def lora_loss(self, draw: NoisyDraw, answers: VSDAnswers) -> Tensor:
        """L_lora: the copy's mean squared error at fresh steps and noise, in its own kind of prediction."""
        return self.score.lesson(draw.clean, answers.text, answers.camera, self.settings.lora_timesteps).loss
