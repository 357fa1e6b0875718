"""Where a run starts: colored points, Gaussians, meshes and solid shapes from a sphere, a file or a prompt."""

from __future__ import annotations

from .files import points_from_file
from .grown import grown_points
from .mesh import ColoredMesh, mesh_from_file, points_from_mesh, points_on_mesh
from .points import ColoredPoints, linear_to_srgb, normalize, reorient
from .settings import INITIALIZATIONS, InitSettings, initial_points, place
from .shap_e import ShapESettings, shap_e_mesh
from .shapes import initial_mesh, initial_shape
from .signed_distance import signed_distance
from .sphere import choose_colors, sphere_points
from .splat import initial_gaussians

__all__ = [
    "INITIALIZATIONS",
    "ColoredMesh",
    "ColoredPoints",
    "InitSettings",
    "ShapESettings",
    "choose_colors",
    "grown_points",
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
    "points_on_mesh",
    "reorient",
    "shap_e_mesh",
    "signed_distance",
    "sphere_points",
]
