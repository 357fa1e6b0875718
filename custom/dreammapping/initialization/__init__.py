"""Where the Gaussians start: colored points from a sphere, a file, a mesh or a prompt."""

from __future__ import annotations

from .files import points_from_file
from .grown import grown_points
from .mesh import ColoredMesh, points_from_mesh, points_on_mesh
from .points import ColoredPoints, linear_to_srgb, normalize, reorient
from .settings import INITIALIZATIONS, InitSettings, initial_points, place
from .shap_e import ShapESettings, shap_e_mesh
from .sphere import choose_colors, sphere_points

__all__ = [
    "INITIALIZATIONS",
    "ColoredMesh",
    "ColoredPoints",
    "InitSettings",
    "ShapESettings",
    "choose_colors",
    "grown_points",
    "initial_points",
    "linear_to_srgb",
    "normalize",
    "place",
    "points_from_file",
    "points_from_mesh",
    "points_on_mesh",
    "reorient",
    "shap_e_mesh",
    "sphere_points",
]
