"""A density field in a hash grid: `implicit-volume`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Optional, Union

import torch
import torch.nn.functional as F
from torch import Tensor

import threestudio
from threestudio.errors import ConfigError, suggest
from threestudio.models.geometry.base import BaseGeometry, BaseImplicitGeometry, contract_to_unisphere
from threestudio.models.geometry.density import (
    central_difference_normal,
    cone_blob,
    forward_difference_normal,
    gaussian_blob,
)
from threestudio.models.networks import get_encoding, get_mlp
from threestudio.utils.ops import get_activation
from threestudio.utils.schedules import is_number

BLOBS = {"blob_magic3d": cone_blob, "blob_dreamfusion": gaussian_blob}
NORMAL_TYPES = ("finite_difference", "finite_difference_laplacian", "analytic", "pred")
ANNEAL_KEYS = ("min_anneal_step", "max_anneal_step", "start_val", "end_val")


def default_pos_encoding() -> dict[str, Any]:
    """The hash grid of threestudio's fields: 16 levels from 16 to 4096 points along an axis."""
    return {
        "otype": "HashGrid",
        "n_levels": 16,
        "n_features_per_level": 2,
        "log2_hashmap_size": 19,
        "base_resolution": 16,
        "per_level_scale": 1.447269237440378,
    }


def default_mlp() -> dict[str, Any]:
    """The network behind it."""
    return {
        "otype": "VanillaMLP",
        "activation": "ReLU",
        "output_activation": "none",
        "n_neurons": 64,
        "n_hidden_layers": 1,
    }


@threestudio.register("implicit-volume")
class ImplicitVolume(BaseImplicitGeometry):
    """Density and features of world points from one encoding: the NeRF of DreamFusion, Magic3D and ProlificDreamer.

    `forward` gives `density` [..., 1], not negative with the usual activations; `features` [..., n_feature_dims] unless
    that is 0; on request `normal` and `shading_normal` [..., 3], unit vectors that point out of the density.
    """

    @dataclass
    class Config(BaseImplicitGeometry.Config):
        n_input_dims: int = 3
        n_feature_dims: int = 3
        density_activation: Optional[str] = "softplus"
        """See `get_activation`. DreamFusion: exp; Magic3D: softplus."""
        density_bias: Union[float, str] = "blob_magic3d"
        """Added before the activation: a number, "blob_magic3d" or "blob_dreamfusion" (see `density.py`)."""
        density_blob_scale: float = 10.0
        density_blob_std: float = 0.5
        """Radius of the blob, world units."""
        pos_encoding_config: dict = field(default_factory=default_pos_encoding)
        mlp_network_config: dict = field(default_factory=default_mlp)
        normal_type: Optional[str] = "finite_difference"
        """Forward differences; "finite_difference_laplacian", central ones; "analytic", from autograd; "pred", from a
        network; null for none."""
        finite_difference_normal_eps: float = 0.01
        """World units."""
        isosurface_threshold: Union[float, str] = 25.0
        anneal_density_blob_std_config: Optional[dict] = None
        """Changes density_blob_std: from `start_val` at `min_anneal_step` to `end_val` at `max_anneal_step`."""

    cfg: Config

    def configure(self) -> None:
        super().configure()
        self._check_config()
        self.encoding = get_encoding(self.cfg.n_input_dims, self.cfg.pos_encoding_config)
        self.density_network = self._head(1)
        if self.cfg.n_feature_dims > 0:
            self.feature_network = self._head(self.cfg.n_feature_dims)
        if self.cfg.normal_type == "pred":
            self.normal_network = self._head(3)
        self.density_blob_std = self.cfg.density_blob_std

    def _check_config(self) -> None:
        bias, normal_type, anneal = self.cfg.density_bias, self.cfg.normal_type, self.cfg.anneal_density_blob_std_config
        if not is_number(bias) and bias not in BLOBS:
            raise ConfigError(f"density_bias is {bias!r}; it must be a number. {suggest(str(bias), BLOBS)}")
        if normal_type is not None and normal_type not in NORMAL_TYPES:
            raise ConfigError(f"normal_type is {normal_type!r}. {suggest(normal_type, NORMAL_TYPES)}")
        if not is_number(self.cfg.density_blob_scale):
            raise ConfigError(f"density_blob_scale is {self.cfg.density_blob_scale}; it must be one number.")
        for key in ("density_blob_std", "finite_difference_normal_eps"):
            if not is_number(self.cfg[key]) or self.cfg[key] <= 0:
                raise ConfigError(f"{key} is {self.cfg[key]}; it must be one number above 0.")
        if anneal is not None and set(anneal) != set(ANNEAL_KEYS):
            raise ConfigError(
                f"anneal_density_blob_std_config has the keys {', '.join(map(str, anneal)) or 'none'}; it needs "
                f"{', '.join(ANNEAL_KEYS)}."
            )
        get_activation(self.cfg.density_activation)

    def _head(self, n_output_dims: int) -> torch.nn.Module:
        return get_mlp(self.encoding.n_output_dims, n_output_dims, self.cfg.mlp_network_config)

    # ---- the field ----

    def _encode(self, points: Tensor) -> Tensor:
        unit = contract_to_unisphere(points, self.bbox, self.unbounded)
        return self.encoding(unit.reshape(-1, self.cfg.n_input_dims))

    def _raw_density(self, points: Tensor, encoded: Tensor) -> Tensor:
        """Before the activation, [..., 1]."""
        raw = self.density_network(encoded).reshape(*points.shape[:-1], 1)
        if self.cfg.density_bias in BLOBS:
            blob = BLOBS[self.cfg.density_bias]
            return raw + blob(points, self.cfg.density_blob_scale, self.density_blob_std)
        return raw + self.cfg.density_bias

    def forward_density(self, points: Tensor) -> Tensor:
        """World points [..., 3] -> density [..., 1]."""
        return get_activation(self.cfg.density_activation)(self._raw_density(points, self._encode(points)))

    def _features(self, points: Tensor, encoded: Tensor) -> dict[str, Tensor]:
        if self.cfg.n_feature_dims == 0:
            return {}
        return {"features": self.feature_network(encoded).reshape(*points.shape[:-1], self.cfg.n_feature_dims)}

    def forward(self, points: Tensor, output_normal: bool = False) -> dict[str, Tensor]:
        if output_normal and self.cfg.normal_type == "analytic":
            return self._forward_with_analytic_normal(points)
        encoded = self._encode(points)
        density = get_activation(self.cfg.density_activation)(self._raw_density(points, encoded))
        output = {"density": density, **self._features(points, encoded)}
        if output_normal:
            output["normal"] = output["shading_normal"] = self._normal(points, density, encoded)
        return output

    def _normal(self, points: Tensor, density: Tensor, encoded: Tensor) -> Tensor:
        eps, radius = self.cfg.finite_difference_normal_eps, self.cfg.radius
        if self.cfg.normal_type == "finite_difference":
            return forward_difference_normal(self.forward_density, points, density, eps, radius)
        if self.cfg.normal_type == "finite_difference_laplacian":
            return central_difference_normal(self.forward_density, points, eps, radius)
        if self.cfg.normal_type == "pred":
            return F.normalize(self.normal_network(encoded).reshape(*points.shape[:-1], 3), dim=-1)
        raise ConfigError(
            "Normals are asked for, but the geometry's normal_type is null. Set system.geometry.normal_type, such as "
            "to 'analytic', or take a material that needs no normals."
        )

    def _forward_with_analytic_normal(self, points: Tensor) -> dict[str, Tensor]:
        training = torch.is_grad_enabled()
        with torch.enable_grad():
            # A leaf of our own where the caller's points carry no graph: theirs are not to be marked.
            points = points if points.requires_grad else points.detach().requires_grad_()
            encoded = self._encode(points)
            raw = self._raw_density(points, encoded)
            # Before the activation, whose slope only scales the gradient and vanishes in empty space.
            (gradient,) = torch.autograd.grad(raw.sum(), points, create_graph=training, retain_graph=True)
            normal = -F.normalize(gradient, dim=-1)
            output = {
                "density": get_activation(self.cfg.density_activation)(raw),
                **self._features(points, encoded),
                "normal": normal,
                "shading_normal": normal,
            }
        return output if training else {name: value.detach() for name, value in output.items()}

    def forward_field(self, points: Tensor) -> tuple[Tensor, Tensor | None]:
        if self.cfg.isosurface_deformable_grid:
            threestudio.warn("implicit-volume has no deformable grid: isosurface_deformable_grid is ignored.")
        return self.forward_density(points), None

    def forward_level(self, field: Tensor, threshold: float) -> Tensor:
        return threshold - field

    def export(self, points: Tensor, **kwargs: Any) -> dict[str, Any]:
        """`features` at world points [..., 3]; nothing if n_feature_dims is 0."""
        return self._features(points, self._encode(points)) if self.cfg.n_feature_dims > 0 else {}

    # ---- training and conversion ----

    def update_step(self, epoch: int, global_step: int, on_load_weights: bool = False) -> None:
        anneal = self.cfg.anneal_density_blob_std_config
        if anneal is None:
            return
        first, last, start, end = (anneal[key] for key in ANNEAL_KEYS)
        share = min(1.0, (global_step - first) / max(last - first, 1))
        self.density_blob_std = start + share * (end - start) if global_step >= first else self.cfg.density_blob_std

    @staticmethod
    def create_from(other: BaseGeometry, cfg: Any = None, copy_net: bool = True, **kwargs: Any) -> ImplicitVolume:
        """A new field with the encoding and the density of `other`, another implicit-volume.

        With `copy_net` also its features if both have equally many, and its predicted normals if both predict them.
        """
        if not isinstance(other, ImplicitVolume):
            return BaseImplicitGeometry.create_from(other, cfg, **kwargs)
        volume = ImplicitVolume(cfg, **kwargs)
        parts = ["encoding", "density_network"]
        if copy_net and volume.cfg.n_feature_dims == other.cfg.n_feature_dims > 0:
            parts.append("feature_network")
        if copy_net and volume.cfg.normal_type == other.cfg.normal_type == "pred":
            parts.append("normal_network")
        for part in parts:
            try:
                getattr(volume, part).load_state_dict(getattr(other, part).state_dict())
            except RuntimeError as error:
                raise ConfigError(
                    f"The {part} of the geometry to convert does not fit the new one's: both need the same "
                    f"pos_encoding_config and mlp_network_config. {error}"
                ) from error
        return volume
