"""A picture all around."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from threestudio import register
from threestudio.errors import ConfigError
from threestudio.models.background.base import BaseBackground
from threestudio.utils.ops import get_activation


@register("textured-background")
class TexturedBackground(BaseBackground):
    """A learned panorama in equirectangular projection, which starts as noise. It lies on its side, as threestudio's.

    Rows go round the z axis: azimuth -180 to 180 degrees from the first to the last, and these two meet. Columns go
    from straight up (+z) at the left to straight down.
    """

    @dataclass
    class Config(BaseBackground.Config):
        n_output_dims: int = 3
        height: int = 64
        width: int = 64
        """Texels around and from top to bottom."""
        color_activation: str = "sigmoid"

    cfg: Config

    def configure(self) -> None:
        for key in ("n_output_dims", "height", "width"):
            if self.cfg[key] < 1:
                raise ConfigError(f"textured-background: {key} is {self.cfg[key]}; it must be at least 1.")
        self.texture = nn.Parameter(torch.randn(1, self.cfg.n_output_dims, self.cfg.height, self.cfg.width))

    def forward(self, dirs: Tensor) -> Tensor:
        """Directions [B, H, W, 3], of any length but zero -> colors [B, H, W, n_output_dims]."""
        x, y, z = dirs.reshape(-1, 3).unbind(-1)
        around = torch.atan2(y, x) / math.pi  # [-1, 1], the azimuth
        down = torch.atan2(torch.hypot(x, y), z) / math.pi * 2.0 - 1.0  # [-1, 1], the angle to +z
        # One more row on each side, so that sampling at the seam sees its neighbor round the corner.
        texture = F.pad(self.texture, (0, 0, 1, 1), mode="circular")
        height = self.cfg.height
        grid = torch.stack([down, around * height / (height + 2)], dim=-1).to(texture.dtype)[None, :, None]
        color = F.grid_sample(texture, grid, mode="bilinear", padding_mode="border", align_corners=False)
        color = color[0, :, :, 0].T.reshape(*dirs.shape[:-1], self.cfg.n_output_dims)
        return get_activation(self.cfg.color_activation)(color)
