"""Diffuse reflection of one point light."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Tuple

import torch
from torch import Tensor
from torch.nn import functional as F

from threestudio import register
from threestudio.errors import UserError, suggest
from threestudio.models.materials.base import BaseMaterial
from threestudio.utils.ops import dot, get_activation

_SHADINGS = ("albedo", "textureless", "diffuse")


@register("diffuse-with-point-light-material")
class DiffuseWithPointLightMaterial(BaseMaterial):
    """Lambert shading with ambient light: albedo * (ambient + diffuse * max(0, n . l)) (DreamFusion, section 3.1).

    In training each call shows one of three shadings, so that color does not replace shape:

    - "albedo", without light: always before `ambient_only_steps`, afterwards with the probability 1 - `diffuse_prob`;
    - "textureless", white under the light: with the probability `diffuse_prob * textureless_prob`;
    - "diffuse", the albedo under the light: otherwise.

    Evaluation shows "diffuse", but "albedo" before `ambient_only_steps` and with `ambient_only_on_test`. The random
    numbers come from torch's global generator on the CPU.
    """

    @dataclass
    class Config(BaseMaterial.Config):
        ambient_light_color: Tuple[float, float, float] = (0.1, 0.1, 0.1)
        diffuse_light_color: Tuple[float, float, float] = (0.9, 0.9, 0.9)
        ambient_only_steps: int = 1000
        """Steps without light at the start."""
        diffuse_prob: float = 0.75
        """Probability in [0, 1] that a training call is lit."""
        textureless_prob: float = 0.5
        """Probability in [0, 1] that a lit training call is white."""
        albedo_activation: str = "sigmoid"
        soft_shading: bool = False
        """In training, split the light at random: diffuse with uniform strength u in [0, 1], ambient with 1 - u."""
        ambient_only_on_test: bool = False
        """Whether evaluation shows the albedo."""

    cfg: Config

    def configure(self) -> None:
        self.requires_normal = True
        self.ambient_light_color: Tensor
        self.diffuse_light_color: Tensor
        for name in ("ambient_light_color", "diffuse_light_color"):
            color = torch.tensor([float(value) for value in self.cfg[name]], dtype=torch.float32)
            self.register_buffer(name, color)
        self.ambient_only = False

    def forward(
        self,
        features: Tensor,
        positions: Tensor,
        shading_normal: Tensor,
        light_positions: Tensor,
        ambient_ratio: float | None = None,
        shading: str | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Colors [..., 3] of points.

        Args:
            features: [..., 3 or more], the first three make the albedo.
            positions, light_positions: [..., 3] world space.
            shading_normal: [..., 3], unit length.
            ambient_ratio: in [0, 1]; white ambient light of this strength and white diffuse light of the rest replace
                the configured light.
            shading: "albedo", "textureless" or "diffuse"; None chooses as the class says.
        """
        shading = self._choose_shading() if shading is None else shading
        if shading not in _SHADINGS:
            raise UserError(f"There is no shading '{shading}'. {suggest(shading, _SHADINGS)}")
        albedo = get_activation(self.cfg.albedo_activation)(features[..., :3])
        ambient, diffuse = self._light(ambient_ratio)
        towards_light = F.normalize(light_positions - positions, dim=-1)
        light = ambient.to(albedo) + diffuse.to(albedo) * dot(shading_normal, towards_light).clamp(min=0.0)
        # What a shading does not show stays in the graph with gradient zero: DDP wants every parameter used.
        if shading == "albedo":
            return albedo + light * 0
        if shading == "textureless":
            return albedo * 0 + light
        return albedo.clamp(0.0, 1.0) * light

    def _choose_shading(self) -> str:
        if not self.training:
            return "albedo" if self.ambient_only or self.cfg.ambient_only_on_test else "diffuse"
        lit, white = torch.rand(2).tolist()
        if self.ambient_only or lit >= self.cfg.diffuse_prob:
            return "albedo"
        return "textureless" if white < self.cfg.textureless_prob else "diffuse"

    def _light(self, ambient_ratio: float | None) -> tuple[Tensor, Tensor]:
        """Colors [3] of the ambient and the diffuse light."""
        ambient, diffuse = self.ambient_light_color, self.diffuse_light_color
        if ambient_ratio is None:
            if not (self.training and self.cfg.soft_shading):
                return ambient, diffuse
            ambient_ratio = 1.0 - float(torch.rand(()))
        return torch.full_like(ambient, ambient_ratio), torch.full_like(diffuse, 1.0 - ambient_ratio)

    def update_step(self, epoch: int, global_step: int, on_load_weights: bool = False) -> None:
        self.ambient_only = global_step < self.cfg.ambient_only_steps

    def export(self, features: Tensor, **kwargs: Any) -> dict[str, Any]:
        """`albedo` [..., 3] in [0, 1]."""
        return {"albedo": get_activation(self.cfg.albedo_activation)(features[..., :3]).clamp(0.0, 1.0)}
