"""`init`: how the Gaussians start, as a config block."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Optional

import torch

from ..errors import ConfigError
from ..registry import Registry
from ..settings import parse_settings
from .files import MAX_POINTS, points_from_file
from .grown import grown_points
from .mesh import ColoredMesh, points_from_mesh, points_on_mesh
from .points import ColoredPoints, linear_to_srgb, normalize, reorient
from .shap_e import ShapESettings, shap_e_mesh
from .sphere import sphere_points

FILE_TYPES = ("points", "mesh", "splat")
"""Types that read `path`."""

_Y_UP_SUFFIXES = (".glb", ".gltf", ".obj")


@dataclass(frozen=True)
class InitSettings:
    """Where the colored points come from. Lengths in world units."""

    type: str = "sphere"
    """A registered initialization: sphere, points (a point-cloud file), mesh (samples of a surface), splat (the Gaussians of a
    file as they are, .ply or .splat), shap-e (a mesh made of a prompt; the paper's)."""
    path: Optional[str] = None
    """The file; of `points`, `mesh` and `splat`."""
    prompt: Optional[str] = None
    """`shap-e` only: what to make."""
    shap_e: dict = field(default_factory=dict)
    """`shap-e` only: see ShapESettings."""
    num_points: Optional[int] = 50_000
    """How many. For `points`: if the file has more, as many are drawn from it; none: all. Paper: nearly 50000. Not for `splat`,
    which keeps every Gaussian."""
    radius: float = 0.5
    """Of the sphere; files and meshes are centered and scaled to it. LucidDreamer's cameras want about 0.5."""
    distribution: Literal["center", "ball", "surface"] = "center"
    """`sphere` only. `center` is LucidDreamer's (distance from the center uniform)."""
    color: Any = "gray"
    """Where nothing gives a color: gray, random, or [r, g, b] in [0, 1]."""
    normalize: bool = True
    """Center files and scale them to `radius`; false keeps their coordinates."""
    up: Literal["x", "y", "z", "-x", "-y", "-z", "auto"] = "z"
    """The file's axis that points up; the world's is z. `auto` goes by the suffix: y for .glb, .gltf (so says glTF) and .obj (so
    most programs write it; threestudio's and our own are z up), else z. TRELLIS' splats: -y."""
    yaw: float = 0.0
    """Degrees to turn a file about z. Azimuth 0, the front, lies on +x in threestudio."""
    linear_colors: bool = False
    """The file's colors are linear light (meshes that Shap-E itself wrote) and are to be converted to sRGB."""


INITIALIZATIONS: Registry[Callable[[InitSettings, torch.Generator, int, torch.device], ColoredPoints]] = Registry("initialization")
"""type -> function(settings, generator, max_points, device) -> colored points on the CPU, not yet placed in the world."""


@INITIALIZATIONS.register("sphere")
def _sphere(settings: InitSettings, generator: torch.Generator, max_points: int, device: torch.device) -> ColoredPoints:
    count = _require_count(settings, max_points)
    return sphere_points(count, settings.radius, generator, distribution=settings.distribution, color=settings.color)


@INITIALIZATIONS.register("points")
def _points(settings: InitSettings, generator: torch.Generator, max_points: int, device: torch.device) -> ColoredPoints:
    wanted = settings.num_points
    limit = max_points if wanted is None else MAX_POINTS
    cloud = points_from_file(require_path(settings), max_points=limit, color=settings.color, generator=generator)
    if wanted is None or cloud.count <= min(wanted, max_points):
        return cloud
    _require_room(min(wanted, cloud.count), max_points)
    chosen = torch.randperm(cloud.count, generator=generator)[:wanted].sort().values
    return ColoredPoints(cloud.points[chosen], cloud.colors[chosen])


@INITIALIZATIONS.register("mesh")
def _mesh(settings: InitSettings, generator: torch.Generator, max_points: int, device: torch.device) -> ColoredPoints:
    count = _require_count(settings, max_points)
    return points_from_mesh(require_path(settings), count, generator, color=settings.color)


@INITIALIZATIONS.register("shap-e")
def _shap_e(settings: InitSettings, generator: torch.Generator, max_points: int, device: torch.device) -> ColoredPoints:
    count = _require_count(settings, max_points)
    shap_e = _shap_e_settings(settings)
    mesh = mesh_of_prompt(settings, device)
    if shap_e.growing:
        return grown_points(mesh, count, generator, distance=shap_e.growing_distance)
    return points_on_mesh(mesh, count, generator)


def mesh_of_prompt(settings: InitSettings, device: torch.device) -> ColoredMesh:
    """Shap-E's mesh of `settings.prompt`, not yet placed in the world. Raises ConfigError as `shap_e_mesh` and for settings that do not fit."""
    if not (settings.prompt or "").strip():
        raise ConfigError(
            "init.type is 'shap-e', which needs init.prompt, a text that says what to make (${system.prompt_processor.prompt} is the run's)"
        )
    if settings.linear_colors:
        raise ConfigError("init.linear_colors is for files; the colors of init.type 'shap-e' are converted already")
    return shap_e_mesh(settings.prompt, _shap_e_settings(settings), device)


def _shap_e_settings(settings: InitSettings) -> ShapESettings:
    return parse_settings(ShapESettings, settings.shap_e, "system.geometry.init.shap_e")


def initial_points(
    settings: InitSettings, generator: torch.Generator, max_points: int, device: torch.device | str = "cpu"
) -> ColoredPoints:
    """The colored points `settings` describe, placed in the world.

    Args:
        generator: CPU generator of every draw.
        max_points: the cap on the number of Gaussians; more points are an error.
        device: where to run a network that makes them.

    Raises:
        ConfigError: an unknown type, or settings that do not fit it.
        GaussianFileError: a file that cannot be used.
    """
    make = INITIALIZATIONS.get(settings.type)
    cloud = make(settings, generator, max_points, torch.device(device))
    if settings.type == "sphere":
        return cloud
    return place(cloud, settings)


def place(cloud: ColoredPoints, settings: InitSettings) -> ColoredPoints:
    """Apply `up`, `yaw`, `normalize`, `radius` and `linear_colors` to points from a file or a mesh."""
    cloud = reorient(cloud, up_axis(settings), settings.yaw)
    if settings.normalize:
        cloud = normalize(cloud, settings.radius)
    return ColoredPoints(cloud.points, linear_to_srgb(cloud.colors)) if settings.linear_colors else cloud


def up_axis(settings: InitSettings) -> str:
    """`settings.up`, with `auto` answered by the file's suffix."""
    if settings.up != "auto":
        return settings.up
    return "y" if Path(settings.path or "").suffix.lower() in _Y_UP_SUFFIXES else "z"


def require_path(settings: InitSettings) -> str:
    """The file of a type that reads one. Raises ConfigError where none is given."""
    if not settings.path:
        raise ConfigError(f"init.type is {settings.type!r}, which needs init.path, the file to read")
    return settings.path


def _require_count(settings: InitSettings, max_points: int) -> int:
    if settings.num_points is None:
        raise ConfigError(f"init.type is {settings.type!r}, which needs init.num_points")
    _require_room(settings.num_points, max_points)
    return settings.num_points


def _require_room(count: int, max_points: int) -> None:
    if count > max_points:
        raise ConfigError(
            f"init would make {count} Gaussians, above densification.cap_max ({max_points}); "
            "lower init.num_points or raise the cap"
        )
