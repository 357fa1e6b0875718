"""Solid shapes that a field can be fitted to: how far a point is from the surface, and which color is nearest."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from ..gaussians.model import knn_scales
from ..registry import Registry
from .mesh import ColoredMesh, mesh_from_file, points_on_mesh
from .points import ColoredPoints
from .settings import InitSettings, initial_points, mesh_of_prompt, place, require_path
from .signed_distance import MeshSurface
from .sphere import sphere_points

MESHES: Registry[Callable[[InitSettings, torch.device], ColoredMesh]] = Registry("initialization from a mesh")
"""type -> function(settings, device to compute on) -> mesh, not yet placed in the world."""

_NEIGHBORS = 3
_ALL_POINTS = 1_000_000


class SolidShape(ABC):
    """Something with an inside, in the world."""

    @abstractmethod
    def query(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Signed distances [N], negative inside, and colors [N, 3] of the nearest surface, at CPU points [N, 3]."""

    @abstractmethod
    def surface_points(self, count: int, generator: torch.Generator) -> Tensor:
        """[count, 3] random points on or at the surface."""


class MeshShape(SolidShape):
    """What a mesh encloses; inside as `signed_distance` has it."""

    def __init__(self, mesh: ColoredMesh) -> None:
        self._mesh = mesh
        self._surface = MeshSurface(mesh.vertices, mesh.faces)

    def query(self, points: Tensor) -> tuple[Tensor, Tensor]:
        found = self._surface.query(points)
        corners = self._mesh.colors[self._mesh.faces[found.faces]]  # [N, 3, 3]
        return found.distances, (corners * found.weights[..., None]).sum(1).clamp(0.0, 1.0)

    def surface_points(self, count: int, generator: torch.Generator) -> Tensor:
        return points_on_mesh(self._mesh, count, generator).points


class PointShape(SolidShape):
    """Balls round points, each as large as its neighbors are far, so that they close a surface that was sampled."""

    def __init__(self, cloud: ColoredPoints) -> None:
        self._cloud = cloud
        self._radii = knn_scales(cloud.points, _NEIGHBORS)
        self._tree = cKDTree(cloud.points.double().numpy())

    def query(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """The distance is to the nearest of the balls round the nearest few points; colors are those points', by closeness."""
        count = min(_NEIGHBORS, self._cloud.count)
        distances, rows = self._tree.query(points.double().numpy(), k=count, workers=torch.get_num_threads())
        distances = torch.from_numpy(np.asarray(distances).reshape(-1, count)).float()
        rows = torch.from_numpy(np.asarray(rows).reshape(-1, count))
        closeness = 1 / distances.clamp_min(1e-6)
        colors = (self._cloud.colors[rows] * closeness[..., None]).sum(1) / closeness.sum(1, keepdim=True)
        return (distances - self._radii[rows]).amin(1), colors

    def surface_points(self, count: int, generator: torch.Generator) -> Tensor:
        rows = torch.randint(self._cloud.count, (count,), generator=generator)
        directions = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=-1)
        return self._cloud.points[rows] + directions * self._radii[rows, None]


class BallShape(SolidShape):
    """A ball round the origin."""

    def __init__(self, surface: ColoredPoints, radius: float) -> None:
        """`surface`: points that have the ball's colors."""
        self._radius = radius
        self._colors = PointShape(surface)

    def query(self, points: Tensor) -> tuple[Tensor, Tensor]:
        return points.norm(dim=-1) - self._radius, self._colors.query(points)[1]

    def surface_points(self, count: int, generator: torch.Generator) -> Tensor:
        return self._radius * torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=-1)


@MESHES.register("mesh")
def _from_file(settings: InitSettings, device: torch.device) -> ColoredMesh:
    return mesh_from_file(require_path(settings), color=settings.color)


@MESHES.register("shap-e")
def _from_prompt(settings: InitSettings, device: torch.device) -> ColoredMesh:
    return mesh_of_prompt(settings, device)


def initial_mesh(settings: InitSettings, device: torch.device) -> ColoredMesh | None:
    """The mesh `settings` describe, placed in the world; None for a type that has none (see MESHES).

    Args:
        device: where a mesh that has to be computed is.

    Raises:
        ConfigError: settings that do not fit the type.
        GaussianFileError: a file that cannot be used.
    """
    if settings.type not in MESHES:
        return None
    mesh = MESHES.get(settings.type)(settings, device)
    placed = place(ColoredPoints(mesh.vertices, mesh.colors), settings)
    return ColoredMesh(placed.points, mesh.faces, placed.colors)


def initial_shape(settings: InitSettings, generator: torch.Generator, device: torch.device) -> SolidShape:
    """The solid `settings` describe: of a mesh, a sphere, or of points for every other type. Errors as `initial_mesh`'s.

    Args:
        generator: CPU generator of every draw.
    """
    mesh = initial_mesh(settings, device)
    if mesh is not None:
        return MeshShape(mesh)
    if settings.type == "sphere":
        colored = sphere_points(1000, settings.radius, generator, distribution="surface", color=settings.color)
        return BallShape(colored, settings.radius)
    return PointShape(initial_points(settings, generator, _ALL_POINTS, device))
