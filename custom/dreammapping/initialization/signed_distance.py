"""Distance to a mesh, negative inside."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..errors import ConfigError
from .triangle_tree import TriangleTree

if TYPE_CHECKING:
    from .mesh import ColoredMesh


@dataclass(frozen=True)
class SurfaceQuery:
    """What `MeshSurface.query` found for N points."""

    distances: Tensor
    """[N] float32, negative inside."""
    faces: Tensor
    """[N] int64, the nearest triangle."""
    weights: Tensor
    """[N, 3] float32 barycentric coordinates of the nearest point in that triangle."""


class MeshSurface:
    """A mesh made ready for many points."""

    def __init__(self, vertices: Tensor, faces: Tensor) -> None:
        """Vertices [V, 3], faces [F, 3] with indices into them.

        Raises:
            ConfigError: no triangle has an area.
        """
        if len(faces) == 0 or len(vertices) == 0:
            raise ConfigError("the mesh has no triangles, so there is no distance to it")
        try:
            self._tree = TriangleTree(vertices, faces)
        except ValueError as problem:
            raise ConfigError(f"{problem}, so there is no distance to the mesh") from problem

    def query(self, points: Tensor) -> SurfaceQuery:
        """Signed distance and nearest place for each of the points [N, 3]; on the points' device."""
        at = points.detach().cpu()
        nearest = self._tree.nearest(at)
        # Turned inside out, a mesh winds backwards; where it has holes, the number is the share of directions that hit it.
        inside = self._tree.winding_numbers(at).abs() > 0.5
        signed = torch.where(inside, -nearest.distances, nearest.distances)
        return SurfaceQuery(signed.float().to(points.device), nearest.faces.to(points.device), nearest.weights.float().to(points.device))


def signed_distance(mesh: ColoredMesh | Any, points: Tensor) -> Tensor:
    """Distance of points [N, 3] to a mesh, negative inside: [N] float32 on the points' device.

    The distance is exact to rounding. Inside is where the generalized winding number is above one half in size (Jacobson et
    al. 2013), so that small holes, parts that overlap and faces that all point inwards do no harm; a flat or wide open
    sheet has no inside.

    Args:
        mesh: has `vertices` [V, 3] and `faces` [F, 3]: a ColoredMesh, or trimesh's.
        points: finite, in the mesh's units.

    Raises:
        ConfigError: no triangle has an area.
    """
    return MeshSurface(_tensor(mesh.vertices), _tensor(mesh.faces)).query(points).distances


def _tensor(values: Any) -> Tensor:
    # A copy: trimesh's arrays may be read-only, or run backwards in memory.
    return values if isinstance(values, Tensor) else torch.from_numpy(np.array(values))
