"""Variational Score Distillation, Wang et al. 2023 (ProlificDreamer).

    L_lora = |e_lora(x_t', t', y, c) - eps'|^2      a copy of the teacher learns the rendered images (eq. 9)
    R      = e_cfg(x_t, t, y) - e_lora(x_t, t, y, c)                                               (eq. 10)

The copy knows the camera c and reads the prompt without its view; it learns at its own t' ~ U{0..T-1} and noise eps'.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..errors import ConfigError
from .auxiliary import AuxiliaryUpdate
from .cfg import CFGConvention, Guided, guide
from .draw import NoisyDraw, draw_noise, to_device
from .loss import LossContext, ScoreLoss, ScoreResult, register_loss
from .teacher import Cost, PromptedTeacher
from .trainable import CAMERA_NUMBERS, Adaptable, AdapterOptions

CAMERAS = {"extrinsics": "c2w", "mvp": "mvp_mtx"}
"""Names of the camera matrices in the draw's context."""


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


@register_loss("vsd")
class VSD(ScoreLoss):
    """R = e_cfg - e_lora, e_lora trained to denoise the rendered images."""

    Settings = VSDSettings
    embeddings = ("cond_no_view",)

    def __init__(self, settings: VSDSettings, context: LossContext) -> None:
        super().__init__(settings, context)
        s = settings
        if not isinstance(context.teacher, Adaptable):
            raise ConfigError(
                f"loss vsd trains a copy of its teacher, which {type(context.teacher).__name__} cannot make"
            )
        options = AdapterOptions(s.lora_model, s.lora_rank, s.camera_condition != "none")
        self.copy = context.teacher.trainable_copy(options, context.generator)
        self.lora = self.copy.adapter
        if s.lora_opt is not None:
            self.update = AuxiliaryUpdate(
                s.lora_opt, s.lora_lr, s.lora_betas, weight_decay=s.lora_weight_decay, steps=s.lora_steps
            )

    def cost(self, t: int, step: int, guided: int = 2) -> Cost:
        s = self.settings
        learned = 1 if s.lora_guidance_scale == 1 else 2
        updates = 1 if s.lora_opt is None else s.lora_steps
        return Cost(guided + learned + s.lora_timesteps * max(updates, 1), s.lora_timesteps * updates)

    def ask(self, draw: NoisyDraw, teacher: PromptedTeacher) -> VSDAnswers:
        text, camera = teacher.embedding("cond_no_view"), self.camera(draw.context, draw.clean)
        learned = self.learned(draw.noisy, draw.t, text, camera)
        return VSDAnswers(teacher.guided(draw.noisy, draw.t), learned, text, camera)

    def forward(self, draw: NoisyDraw, answers: VSDAnswers) -> ScoreResult:
        residual = answers.guided.guided - answers.learned
        unconditional = answers.guided.cond - answers.learned
        diagnostics = {
            "norm_unconditional": unconditional.square().mean().sqrt(),
            "norm_guidance": answers.guided.term.square().mean().sqrt(),
        }
        return ScoreResult(residual, {"lora": self.lora_loss(draw, answers)}, diagnostics)

    def learned(self, noisy: Tensor, t: Tensor, text: Tensor, camera: Tensor | None) -> Tensor:
        """e_lora(x_t, t, y, c) [B,C,h,w], without graph."""
        scale, schedule = self.settings.lora_guidance_scale, self.context.teacher.schedule
        if scale != 1:
            noisy, t, text = noisy.repeat(2, 1, 1, 1), t.repeat(2), _repeat(text, 2)
            camera = torch.cat([camera, torch.zeros_like(camera)])
        output = self.copy.predict(noisy, t, text, camera)
        eps = schedule.eps_from_output(self.copy.prediction_type, noisy, output, t)
        return eps if scale == 1 else guide(*eps.chunk(2), scale, CFGConvention.USUAL)

    def lora_loss(self, draw: NoisyDraw, answers: VSDAnswers) -> Tensor:
        """L_lora: the copy's mean squared error at fresh steps and noise, in its own kind of prediction."""
        times, generator, schedule = self.settings.lora_timesteps, self.context.generator, self.context.teacher.schedule
        clean = draw.clean.repeat(times, 1, 1, 1)
        t = to_device(torch.randint(0, schedule.steps, (len(clean),), generator=generator), clean.device)
        noise = draw_noise(clean, generator)
        camera = answers.camera
        if camera is not None:
            shown = torch.rand(len(clean), 1, generator=generator) >= self.settings.camera_dropout
            camera = camera.repeat(times, 1) * to_device(shown, clean.device)
        noisy, text = schedule.add_noise(clean, noise, t), _repeat(answers.text, times)
        output = self.copy.predict(noisy, t, text, camera, differentiable=True)
        return (output - schedule.target(self.copy.prediction_type, clean, noise, t)).square().mean()

    def camera(self, context: Mapping[str, Tensor], images: Tensor) -> Tensor | None:
        """The cameras [B,16] the copy is told about `images` [B,...], from a draw's context."""
        kind = self.settings.camera_condition
        if kind == "none":
            return None
        name = CAMERAS[kind]
        matrices = context.get(name)
        if matrices is None or matrices[0].numel() != CAMERA_NUMBERS or len(matrices) != len(images):
            found = "nothing" if matrices is None else f"a tensor of shape {list(matrices.shape)}"
            raise ConfigError(
                f"loss.camera_condition {kind} needs {name} [{len(images)},4,4] with the images, but there is "
                f"{found}; choose another data module or camera_condition: none"
            )
        return matrices.flatten(1).to(images)


def _repeat(text: Tensor, times: int) -> Tensor:
    """Embeddings for `times` batches in a row; a single one serves all images as it is."""
    return text if len(text) == 1 else text.repeat(times, 1, 1)
