"""Where the Gaussians start: colored points from a sphere, a file or a mesh."""

from __future__ import annotations

from .files import points_from_file
from .mesh import points_from_mesh
from .points import ColoredPoints, linear_to_srgb, normalize, reorient
from .settings import INITIALIZATIONS, InitSettings, initial_points, place
from .sphere import choose_colors, sphere_points

__all__ = [
    "INITIALIZATIONS",
    "ColoredPoints",
    "InitSettings",
    "choose_colors",
    "initial_points",
    "linear_to_srgb",
    "normalize",
    "place",
    "points_from_file",
    "points_from_mesh",
    "reorient",
    "sphere_points",
]
