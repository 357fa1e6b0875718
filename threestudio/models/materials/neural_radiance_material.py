"""Color that depends on the direction it is seen from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from threestudio import register
from threestudio.errors import ConfigError
from threestudio.models.materials.base import BaseMaterial
from threestudio.models.networks import get_encoding, get_mlp
from threestudio.utils.ops import get_activation


@register("neural-radiance-material")
class NeuralRadianceMaterial(BaseMaterial):
    """A small network from features and view direction to color (NeRF, Mildenhall et al. 2020). Exports nothing."""

    @dataclass
    class Config(BaseMaterial.Config):
        input_feature_dims: int = 8
        """Width of the geometry's features."""
        color_activation: str = "sigmoid"
        dir_encoding_config: dict = field(default_factory=lambda: {"otype": "SphericalHarmonics", "degree": 3})
        mlp_network_config: dict = field(
            default_factory=lambda: {
                "otype": "FullyFusedMLP",
                "activation": "ReLU",
                "n_neurons": 16,
                "n_hidden_layers": 2,
            }
        )

    cfg: Config

    def configure(self) -> None:
        self.encoding = get_encoding(3, self.cfg.dir_encoding_config)
        width = self.cfg.input_feature_dims + self.encoding.n_output_dims
        self.network = get_mlp(width, 3, self.cfg.mlp_network_config)

    def forward(self, features: Tensor, viewdirs: Tensor, **kwargs: Any) -> Tensor:
        """Features [..., input_feature_dims] and unit directions from the eye [..., 3] -> colors [..., 3]."""
        if features.shape[-1] != self.cfg.input_feature_dims:
            raise ConfigError(
                f"neural-radiance-material: the geometry gives {features.shape[-1]} features, input_feature_dims is "
                f"{self.cfg.input_feature_dims}. Make them equal (geometry.n_feature_dims)."
            )
        encoded = self.encoding(((viewdirs + 1.0) / 2.0).reshape(-1, 3))
        inputs = torch.cat([features.reshape(len(encoded), -1), encoded.to(features.dtype)], dim=-1)
        color = self.network(inputs).reshape(*features.shape[:-1], 3)
        return get_activation(self.cfg.color_activation)(color)
