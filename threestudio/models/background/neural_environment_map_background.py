"""A small network over directions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Optional

import torch
from torch import Tensor

from threestudio import register
from threestudio.errors import ConfigError
from threestudio.models.background.base import BaseBackground, random_colors, should_augment
from threestudio.models.networks import get_encoding, get_mlp
from threestudio.utils.ops import get_activation


@register("neural-environment-map-background")
class NeuralEnvironmentMapBackground(BaseBackground):
    """Learned colors by direction (DreamFusion, section 3.1); during training optionally a random color instead."""

    @dataclass
    class Config(BaseBackground.Config):
        n_output_dims: int = 3
        color_activation: str = "sigmoid"
        dir_encoding_config: dict = field(default_factory=lambda: {"otype": "SphericalHarmonics", "degree": 3})
        mlp_network_config: dict = field(
            default_factory=lambda: {
                "otype": "VanillaMLP",
                "activation": "ReLU",
                "n_neurons": 16,
                "n_hidden_layers": 2,
            }
        )
        random_aug: bool = False
        random_aug_prob: float = 0.5
        """Probability in [0, 1] that a training call shows random colors."""
        eval_color: Optional[tuple] = None
        """Fixed color of evaluation images, n_output_dims numbers; None shows the learned background."""

    cfg: Config

    def configure(self) -> None:
        self.encoding = get_encoding(3, self.cfg.dir_encoding_config)
        self.network = get_mlp(self.encoding.n_output_dims, self.cfg.n_output_dims, self.cfg.mlp_network_config)
        eval_color = self.cfg.eval_color
        if eval_color is not None and len(eval_color) != self.cfg.n_output_dims:
            raise ConfigError(
                f"neural-environment-map-background: eval_color has {len(eval_color)} entries, n_output_dims is "
                f"{self.cfg.n_output_dims}; they must agree."
            )

    def forward(self, dirs: Tensor) -> Tensor:
        """Directions [B, H, W, 3], unit length -> colors [B, H, W, n_output_dims]."""
        if not self.training and self.cfg.eval_color is not None:
            color = torch.tensor([float(value) for value in self.cfg.eval_color]).to(dirs)
            return color.expand(*dirs.shape[:-1], self.cfg.n_output_dims)
        encoded = self.encoding(((dirs + 1.0) / 2.0).reshape(-1, 3))
        color = self.network(encoded).reshape(*dirs.shape[:-1], self.cfg.n_output_dims)
        color = get_activation(self.cfg.color_activation)(color)
        # Random colors replace the network's without dropping it from the graph: DDP wants every parameter used.
        return color * 0 + random_colors(color) if should_augment(self) else color
