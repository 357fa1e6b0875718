"""Base classes of renderers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from threestudio.models.parts import HasParts, SubModules
from threestudio.utils.base import BaseModule


class Renderer(HasParts, BaseModule):
    """Turns a batch of cameras into images of a geometry with a material in front of a background.

    `forward(**batch)` returns a dict, in which `comp_rgb` [B, H, W, C] is the finished image.
    """

    @dataclass
    class Config(BaseModule.Config):
        radius: float = 1.0
        """Half side of the cube that holds the object, world units."""

    cfg: Config

    def configure(self, geometry: Any, material: Any, background: Any) -> None:
        self.sub_modules = SubModules(geometry, material, background)
        radius = self.cfg.radius
        self.bbox: torch.Tensor
        self.register_buffer("bbox", torch.tensor([[-radius] * 3, [radius] * 3], dtype=torch.float32))

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Render one batch; see the class."""
        raise TypeError(f"{type(self).__name__} does not define forward(), which every renderer must.")


class VolumeRenderer(Renderer):
    """Renderers that integrate along rays."""


class Rasterizer(Renderer):
    """Renderers that project primitives onto the image."""
