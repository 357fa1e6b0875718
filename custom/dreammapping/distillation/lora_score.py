"""The score of the rendered images, learned by a trainable copy of the teacher: what VSD, DreamFlow, ASD and LODS share.

    e_lora(x_t, t, y, c)                                   what the copy predicts for an image, text y and camera c
    |copy(x_t', t', y, c) - target|^2                      how it learns, at its own t' ~ U{0..T-1} and noise eps'

The target is eps', or v or x_0 for a copy that predicts those.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..errors import ConfigError
from ..processes import Rows
from ..transfers import to_device
from .cfg import CFGConvention, guide
from .draw import NoisyDraw, draw_training_pairs
from .loss import LossContext
from .teacher import repeat_text
from .trainable import CAMERA_NUMBERS, Adaptable, AdapterOptions

CAMERAS = {"extrinsics": "c2w", "mvp": "mvp_mtx"}
"""Names of the camera matrices in the draw's context."""


@dataclass(frozen=True)
class Lesson:
    """One batch of training pairs and what the copy said to it."""

    draw: NoisyDraw
    """t', eps' and x_t' of times B images."""
    output: Tensor
    """[times B,C,h,w] in the copy's kind of prediction, with graph to its parameters."""
    target: Tensor
    """[times B,C,h,w] what would have been right."""

    @property
    def loss(self) -> Tensor:
        """The mean squared error."""
        return (self.output - self.target).square().mean()


@dataclass(frozen=True)
class CameraCondition:
    """Whether and how the copy is told the camera."""

    kind: Literal["extrinsics", "mvp", "none"] = "none"
    """extrinsics: camera-to-world; mvp: world-to-clip; none: the copy does not know the camera."""
    dropout: float = 0.0
    """Chance per image that a lesson hides it."""
    guidance_scale: float = 1.0
    """Of e_lora: e_none + S (e_camera - e_none). 1 is e_camera alone and saves a forward pass."""


class LoraScore:
    """A copy of the loss's teacher. The loss keeps `adapter`, its trainable part, as a submodule."""

    def __init__(
        self, context: LossContext, *, model: str | None, rank: int, scale: float = 1.0, camera: CameraCondition
    ) -> None:
        if not isinstance(context.teacher, Adaptable):
            raise ConfigError(
                f"this loss trains a copy of its teacher, which {type(context.teacher).__name__} cannot make"
            )
        self.context, self.condition = context, camera
        options = AdapterOptions(model, rank, camera.kind != "none", scale)
        self.copy = context.teacher.trainable_copy(options, context.generator)
        self.adapter = self.copy.adapter

    @property
    def forwards(self) -> int:
        """Network evaluations per image of one `eps`."""
        return 1 if self.condition.guidance_scale == 1 else 2

    def eps(self, noisy: Tensor, t: Tensor, text: Tensor, camera: Tensor | None) -> Tensor:
        """e_lora [B,C,h,w] for x_t [B,C,h,w], t [B], text [B or 1,L,E] and camera [B,16]; without graph."""
        scale, schedule = self.condition.guidance_scale, self.context.teacher.schedule
        if scale != 1:
            noisy, t, text = noisy.repeat(2, 1, 1, 1), t.repeat(2), repeat_text(text, 2)
            camera = torch.cat([camera, torch.zeros_like(camera)])
        output = self.copy.predict(noisy, t, text, camera)
        eps = schedule.eps_from_output(self.copy.prediction_type, noisy, output, t)
        return eps if scale == 1 else guide(*eps.chunk(2), scale, CFGConvention.USUAL)

    def lesson(self, clean: Tensor, text: Tensor, camera: Tensor | None, times: int = 1) -> Lesson:
        """The copy's answers to `times` fresh training pairs for each of the images `clean` [B,C,h,w]."""
        generator, schedule = self.context.generator, self.context.teacher.schedule
        pair = draw_training_pairs(clean, schedule, generator, times)
        if camera is not None:
            rows = Rows.of_process(len(clean))
            drawn = rows.take(torch.rand(rows.total * times, 1, generator=generator), times)
            shown = drawn >= self.condition.dropout
            camera = camera.repeat(times, 1) * to_device(shown, clean.device)
        output = self.copy.predict(pair.noisy, pair.t, repeat_text(text, times), camera, differentiable=True)
        return Lesson(pair, output, schedule.target(self.copy.prediction_type, pair.clean, pair.noise, pair.t))

    def camera(self, context: Mapping[str, Tensor], images: Tensor) -> Tensor | None:
        """The cameras [B,16] the copy is told about `images` [B,...], from a draw's context."""
        kind = self.condition.kind
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
