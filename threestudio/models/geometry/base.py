"""Base classes of geometries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from threestudio.errors import ConfigError
from threestudio.models.isosurface import (
    EmptySurfaceError,
    IsosurfaceHelper,
    MarchingCubeCPUHelper,
    MarchingTetrahedraHelper,
)
from threestudio.models.mesh import Mesh
from threestudio.utils.base import BaseModule
from threestudio.utils.ops import chunk_batch, scale_tensor


def contract_to_unisphere(x: Tensor, bbox: Tensor, unbounded: bool = False) -> Tensor:
    """World points [..., 3] -> [0, 1]^3 for an encoding.

    Args:
        bbox: [2, 3], the box that maps to the unit cube. Bounded points outside it land outside the cube.
        unbounded: fit all of space: the unit ball of the box's coordinates keeps half the side, the rest is contracted
            round it (mip-NeRF 360, eq. 10).
    """
    x = scale_tensor(x, bbox, (0, 1))
    if not unbounded:
        return x
    x = x * 2 - 1
    length = x.norm(dim=-1, keepdim=True).clamp(min=1e-9)
    return torch.where(length > 1, (2 - 1 / length) * (x / length), x) / 4 + 0.5


def _cube(radius: float) -> Tensor:
    return torch.tensor([[-radius] * 3, [radius] * 3], dtype=torch.float32)


class BaseGeometry(BaseModule):
    """Where matter is, and features from which a material makes color."""

    @dataclass
    class Config(BaseModule.Config):
        pass

    cfg: Config

    @staticmethod
    def create_from(other: BaseGeometry, cfg: Any = None, **kwargs: Any) -> BaseGeometry:
        """A geometry of this class made from another one. TypeError if the class knows no way."""
        raise TypeError(
            f"A {type(other).__name__} cannot be converted to this geometry. Remove geometry_convert_from "
            "or choose another "
            "geometry_type."
        )

    def export(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """What a material needs to make textures, by name. Nothing by default."""
        return {}


class BaseImplicitGeometry(BaseGeometry):
    """A field over space. Subclasses define `forward`, `forward_field` and `forward_level`."""

    @dataclass
    class Config(BaseGeometry.Config):
        radius: float = 1.0
        """Half side of the cube that holds the object, world units."""
        isosurface: bool = True
        """Whether a mesh may be extracted."""
        isosurface_method: str = "mt"
        """"mt", marching tetrahedra, or "mc-cpu", marching cubes by scikit-image or PyMCubes."""
        isosurface_resolution: int = 128
        """Grid vertices along each axis."""
        isosurface_threshold: Any = 0.0
        """Level of the surface: a number, or "auto", the mean of the field's values above 1e-5."""
        isosurface_chunk: int = 0
        """Grid points evaluated at once; 0 takes all."""
        isosurface_coarse_to_fine: bool = True
        """Extract twice, the second time in the first surface's box grown by 10 % or one grid cell."""
        isosurface_deformable_grid: bool = False
        """Whether `forward_field` also moves the grid's vertices ("mt" only)."""
        isosurface_remove_outliers: bool = True
        isosurface_outlier_n_faces_threshold: Any = 0.01
        """Parts with fewer faces are removed: an int counts faces, a float is a fraction of the largest part's."""

    cfg: Config

    def configure(self) -> None:
        self.bbox: Tensor
        self.register_buffer("bbox", _cube(self.cfg.radius))
        self.isosurface_helper: IsosurfaceHelper | None = None
        self.unbounded: bool = False

    def _missing(self, method: str) -> TypeError:
        return TypeError(f"{type(self).__name__} does not define {method}(), which this needs.")

    def forward(self, points: Tensor, output_normal: bool = False) -> dict[str, Tensor]:
        """World points [..., 3] -> quantities [..., C] by name."""
        raise self._missing("forward")

    def forward_field(self, points: Tensor) -> tuple[Tensor, Tensor | None]:
        """World points [..., 3] -> the field [..., 1] and, for a deformable grid, offsets [..., 3]."""
        raise self._missing("forward_field")

    def forward_level(self, field: Tensor, threshold: float) -> Tensor:
        """The field [..., 1] -> values that are zero on the surface and negative inside."""
        raise self._missing("forward_level")

    def _make_helper(self) -> IsosurfaceHelper:
        helpers = {"mt": MarchingTetrahedraHelper, "mc-cpu": MarchingCubeCPUHelper}
        if self.cfg.isosurface_method not in helpers:
            raise ConfigError(f"isosurface_method is {self.cfg.isosurface_method!r}; it must be 'mt' or 'mc-cpu'.")
        return helpers[self.cfg.isosurface_method](self.cfg.isosurface_resolution).to(self.bbox.device)

    def _threshold(self, field: Tensor) -> float:
        threshold = self.cfg.isosurface_threshold
        if threshold == "auto":
            occupied = field[field > 1e-5]
            return float(occupied.detach().mean()) if occupied.numel() else 0.0
        try:
            return float(threshold)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"isosurface_threshold is {threshold!r}; it must be a number or 'auto'.") from error

    def _isosurface(self, bbox: Tensor, fine_stage: bool = False) -> Mesh:
        helper = self.isosurface_helper

        def field_at(unit_points: Tensor) -> tuple[Tensor, Tensor | None]:
            field, deformation = self.forward_field(scale_tensor(unit_points, helper.points_range, bbox))
            return field, deformation if self.cfg.isosurface_deformable_grid else None

        field, deformation = chunk_batch(field_at, self.cfg.isosurface_chunk, helper.grid_vertices.to(bbox))
        threshold = self._threshold(field)
        try:
            # forward_level is negative inside, the helpers want positive.
            mesh = helper(-self.forward_level(field, threshold), deformation=deformation)
        except EmptySurfaceError as error:
            raise EmptySurfaceError(
                f"There is no surface: isosurface_threshold is {threshold:.4g}, but the field lies between "
                f"{float(field.min()):.4g} and {float(field.max()):.4g}. Set system.geometry.isosurface_threshold to a "
                "value between them."
            ) from error
        mesh.v_pos = scale_tensor(mesh.v_pos, helper.points_range, bbox)
        mesh.add_extra("bbox", bbox)
        if self.cfg.isosurface_remove_outliers:
            mesh = mesh.remove_outlier(self.cfg.isosurface_outlier_n_faces_threshold)
        return mesh

    def isosurface(self) -> Mesh:
        """The surface as a mesh in world coordinates; `extras["bbox"]` is the box it was searched in."""
        if not self.cfg.isosurface:
            raise ConfigError(
                "This geometry is configured with isosurface: false, so no mesh can be extracted from it."
            )
        if self.isosurface_helper is None:
            self.isosurface_helper = self._make_helper()
        if not self.cfg.isosurface_coarse_to_fine:
            return self._isosurface(self.bbox)
        with torch.no_grad():
            coarse = self._isosurface(self.bbox).v_pos
            low, high = coarse.amin(0), coarse.amax(0)
            # At least one coarse cell: the coarse surface of a small object may lie that far off.
            cell = (self.bbox[1] - self.bbox[0]) / (self.cfg.isosurface_resolution - 1)
            margin = (0.1 * (high - low)).max(cell)
            fine_bbox = torch.stack([(low - margin).max(self.bbox[0]), (high + margin).min(self.bbox[1])])
        return self._isosurface(fine_bbox, fine_stage=True)


class BaseExplicitGeometry(BaseGeometry):
    """Points or faces in a box."""

    @dataclass
    class Config(BaseGeometry.Config):
        radius: float = 1.0
        """Half side of the cube that holds the object, world units."""

    cfg: Config

    def configure(self) -> None:
        self.bbox: Tensor
        self.register_buffer("bbox", _cube(self.cfg.radius))
