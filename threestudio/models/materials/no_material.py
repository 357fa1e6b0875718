"""A material without lighting."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Optional

from torch import Tensor

from threestudio import register
from threestudio.errors import ConfigError
from threestudio.models.materials.base import BaseMaterial
from threestudio.models.networks import get_mlp
from threestudio.utils.ops import get_activation


@register("no-material")
class NoMaterial(BaseMaterial):
    """The geometry's features are the color, after an activation or after a small network."""

    @dataclass
    class Config(BaseMaterial.Config):
        n_output_dims: int = 3
        color_activation: str = "sigmoid"
        input_feature_dims: Optional[int] = None
        """Width of the features; needed (only) for the network."""
        mlp_network_config: Optional[dict] = None
        """Network from features to color, see `networks.get_mlp`; None uses the features themselves."""
        requires_normal: bool = False

    cfg: Config

    def configure(self) -> None:
        self.use_network = self.cfg.mlp_network_config is not None
        self.requires_normal = self.cfg.requires_normal
        if self.use_network != (self.cfg.input_feature_dims is not None):
            raise ConfigError(
                "no-material: input_feature_dims and mlp_network_config belong together; set both or neither."
            )
        if self.use_network:
            self.network = get_mlp(self.cfg.input_feature_dims, self.cfg.n_output_dims, self.cfg.mlp_network_config)

    def forward(self, features: Tensor, **kwargs: Any) -> Tensor:
        """Features [..., Nf] -> colors [..., n_output_dims]."""
        if self.use_network:
            values = self.network(features.reshape(-1, features.shape[-1]))
            values = values.reshape(*features.shape[:-1], self.cfg.n_output_dims)
        elif features.shape[-1] == self.cfg.n_output_dims:
            values = features
        else:
            raise ConfigError(
                f"no-material: the geometry gives {features.shape[-1]} features, n_output_dims is "
                f"{self.cfg.n_output_dims}. Make them equal or set mlp_network_config and input_feature_dims."
            )
        return get_activation(self.cfg.color_activation)(values)

    def export(self, features: Tensor, **kwargs: Any) -> dict[str, Any]:
        """`albedo`: the first three channels."""
        return {"albedo": self(features, **kwargs)[..., :3]}
