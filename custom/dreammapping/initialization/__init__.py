"""Where a run starts: colored points, Gaussians, meshes and solid shapes from a sphere or a file."""

from __future__ import annotations

from .files import points_from_file
from .mesh import ColoredMesh, mesh_from_file, points_from_mesh
from .points import ColoredPoints, linear_to_srgb, normalize, reorient
from .settings import INITIALIZATIONS, InitSettings, initial_points, place
from .shapes import initial_mesh, initial_shape
from .signed_distance import signed_distance
from .sphere import choose_colors, sphere_points
from .splat import initial_gaussians

__all__ = [
    "INITIALIZATIONS",
    "ColoredMesh",
    "ColoredPoints",
    "InitSettings",
    "choose_colors",
    "initial_gaussians",
    "initial_mesh",
    "initial_points",
    "initial_shape",
    "linear_to_srgb",
    "mesh_from_file",
    "normalize",
    "place",
    "points_from_file",
    "points_from_mesh",
    "reorient",
    "signed_distance",
    "sphere_points",
]
