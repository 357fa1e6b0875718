"""One color in all directions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from threestudio import register
from threestudio.errors import ConfigError
from threestudio.models.background.base import BaseBackground, random_colors, should_augment


@register("solid-color-background")
class SolidColorBackground(BaseBackground):
    """A fixed or learned color; during training optionally a random one instead, per batch item."""

    @dataclass
    class Config(BaseBackground.Config):
        n_output_dims: int = 3
        color: tuple = (1.0, 1.0, 1.0)
        """The color (the start of a learned one), n_output_dims numbers."""
        learned: bool = False
        random_aug: bool = False
        random_aug_prob: float = 0.5
        """Probability in [0, 1] that a training call shows random colors."""

    cfg: Config

    def configure(self) -> None:
        color = torch.tensor([float(value) for value in self.cfg.color], dtype=torch.float32)
        if len(color) != self.cfg.n_output_dims:
            raise ConfigError(
                f"solid-color-background: color has {len(color)} entries, n_output_dims is {self.cfg.n_output_dims}; "
                "they must agree."
            )
        self.env_color: Tensor
        if self.cfg.learned:
            self.env_color = nn.Parameter(color)
        else:
            self.register_buffer("env_color", color)

    def forward(self, dirs: Tensor) -> Tensor:
        """Directions [B, H, W, 3] -> colors [B, H, W, n_output_dims]."""
        color = self.env_color.expand(*dirs.shape[:-1], self.cfg.n_output_dims)
        # Random colors replace the learned one without dropping it from the graph: DDP wants every parameter used.
        return color * 0 + random_colors(color) if should_augment(self) else color
