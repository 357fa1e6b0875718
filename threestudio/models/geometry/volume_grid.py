"""A density field in a grid of voxels: `volume-grid`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Optional, Tuple, Union

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import threestudio
from threestudio.errors import ConfigError, suggest
from threestudio.models.geometry.base import BaseImplicitGeometry, contract_to_unisphere
from threestudio.models.geometry.density import central_difference_normal, cone_blob
from threestudio.utils.ops import get_activation
from threestudio.utils.schedules import is_number

NORMAL_TYPES = ("finite_difference", "finite_difference_laplacian", "pred")
NORMAL_EPS = 1e-3
"""World units; fixed, as upstream's."""


@threestudio.register("volume-grid")
class VolumeGrid(BaseImplicitGeometry):
    """Density and features interpolated between voxels (Score Jacobian Chaining, Wang et al. 2023).

    `forward` gives `density` [..., 1], `features` [..., n_feature_dims], and on request `normal` and `shading_normal`
    [..., 3], unit vectors that point out of the density. The parameter `grid` [1, 1 + n_feature_dims, nz, ny, nx] holds
    density, then features; outermost voxels lie on the faces of the cube, and outside of it the field fades to zero.
    """

    @dataclass
    class Config(BaseImplicitGeometry.Config):
        grid_size: Tuple[int, int, int] = field(default_factory=lambda: (100, 100, 100))
        """Voxels along z, y, x."""
        n_feature_dims: int = 3
        density_activation: Optional[str] = "softplus"
        density_bias: Union[float, str] = "blob"
        """Added before the activation: "blob" (see `cone_blob`), or a number; with a number the voxels' density is
        scaled by a factor that is learned too."""
        density_blob_scale: float = 5.0
        density_blob_std: float = 0.5
        """Radius of the blob, world units."""
        normal_type: Optional[str] = "finite_difference"
        """Central differences, by either name; "pred", from voxels of their own; null for none."""
        isosurface_threshold: Union[float, str] = "auto"

    cfg: Config

    def configure(self) -> None:
        super().configure()
        self._check_config()
        self.grid_size = tuple(self.cfg.grid_size)
        self.grid = nn.Parameter(torch.zeros(1, self.cfg.n_feature_dims + 1, *self.grid_size))
        self.density_scale: Tensor
        if self.cfg.density_bias == "blob":
            self.register_buffer("density_scale", torch.tensor(0.0))
        else:
            self.density_scale = nn.Parameter(torch.tensor(0.0))
        if self.cfg.normal_type == "pred":
            self.normal_grid = nn.Parameter(torch.zeros(1, 3, *self.grid_size))

    def _check_config(self) -> None:
        bias, normal_type = self.cfg.density_bias, self.cfg.normal_type
        if not is_number(bias) and bias != "blob":
            raise ConfigError(f"density_bias is {bias!r}; it must be a number or 'blob'.")
        if normal_type is not None and normal_type not in NORMAL_TYPES:
            raise ConfigError(f"normal_type is {normal_type!r}. {suggest(normal_type, NORMAL_TYPES)}")
        if min(self.cfg.grid_size) < 2:
            raise ConfigError(f"grid_size is {list(self.cfg.grid_size)}; each number must be at least 2.")
        get_activation(self.cfg.density_activation)

    # ---- the field ----

    def _voxels(self, points: Tensor, grid: Tensor) -> Tensor:
        """World points [..., 3] and a grid [1, C, nz, ny, nx] -> values [..., C] between the voxels."""
        unit = contract_to_unisphere(points, self.bbox, self.unbounded)
        places = (unit * 2 - 1).reshape(1, 1, 1, -1, 3).to(grid.dtype)
        values = F.grid_sample(grid, places, mode="bilinear", padding_mode="zeros", align_corners=True)
        return values.reshape(grid.shape[1], -1).t().reshape(*points.shape[:-1], grid.shape[1])

    def _activated_density(self, points: Tensor, voxels: Tensor) -> Tensor:
        bias = self.cfg.density_bias
        if bias == "blob":
            # Detached as upstream's: normals by differences see it, gradients in the points do not.
            bias = cone_blob(points.detach(), self.cfg.density_blob_scale, self.cfg.density_blob_std)
        return get_activation(self.cfg.density_activation)(voxels * torch.exp(self.density_scale) + bias)

    def forward_density(self, points: Tensor) -> Tensor:
        """World points [..., 3] -> density [..., 1]."""
        return self._activated_density(points, self._voxels(points, self.grid[:, :1]))

    def forward(self, points: Tensor, output_normal: bool = False) -> dict[str, Tensor]:
        voxels = self._voxels(points, self.grid)
        output = {"density": self._activated_density(points, voxels[..., :1]), "features": voxels[..., 1:]}
        if output_normal:
            output["normal"] = output["shading_normal"] = self._normal(points)
        return output

    def _normal(self, points: Tensor) -> Tensor:
        if self.cfg.normal_type in ("finite_difference", "finite_difference_laplacian"):
            return central_difference_normal(self.forward_density, points, NORMAL_EPS, self.cfg.radius)
        if self.cfg.normal_type == "pred":
            return F.normalize(self._voxels(points, self.normal_grid), dim=-1)
        raise ConfigError(
            "Normals are asked for, but the geometry's normal_type is null. Set system.geometry.normal_type to "
            "'finite_difference', or take a material that needs no normals."
        )

    def forward_field(self, points: Tensor) -> tuple[Tensor, Tensor | None]:
        if self.cfg.isosurface_deformable_grid:
            threestudio.warn("volume-grid has no deformable grid: isosurface_deformable_grid is ignored.")
        return self.forward_density(points), None

    def forward_level(self, field: Tensor, threshold: float) -> Tensor:
        return threshold - field

    def export(self, points: Tensor, **kwargs: Any) -> dict[str, Any]:
        """`features` at world points [..., 3]; nothing if n_feature_dims is 0."""
        return {"features": self._voxels(points, self.grid[:, 1:])} if self.cfg.n_feature_dims > 0 else {}
