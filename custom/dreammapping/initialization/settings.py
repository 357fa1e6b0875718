"""`init`: how the Gaussians start, as a config block."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Optional

import torch

from ..errors import ConfigError
from ..registry import Registry
from ..settings import parse_settings
from .files import MAX_POINTS, points_from_file
from .grown import grown_points
from .mesh import points_from_mesh, points_on_mesh
from .points import ColoredPoints, linear_to_srgb, normalize, reorient
from .shap_e import ShapESettings, shap_e_mesh
from .sphere import sphere_points


@dataclass(frozen=True)
class InitSettings:
    """Where the colored points come from. Lengths in world units."""

    type: str = "sphere"
    """A registered initialization: sphere, points (a point-cloud file), mesh (samples of a surface), shap-e (a mesh made
    of a prompt; the paper's)."""
    path: Optional[str] = None
    """The file; of `points` and `mesh`."""
    prompt: Optional[str] = None
    """`shap-e` only: what to make."""
    shap_e: dict = field(default_factory=dict)
    """`shap-e` only: see ShapESettings."""
    num_points: Optional[int] = 50_000
    """How many. For `points`: if the file has more, as many are drawn from it; none: all. Paper: nearly 50000."""
    radius: float = 0.5
    """Of the sphere; files and meshes are centered and scaled to it. LucidDreamer's cameras want about 0.5."""
    distribution: Literal["center", "ball", "surface"] = "center"
    """`sphere` only. `center` is LucidDreamer's (distance from the center uniform)."""
    color: Any = "gray"
    """Where nothing gives a color: gray, random, or [r, g, b] in [0, 1]."""
    normalize: bool = True
    """Center files and scale them to `radius`; false keeps their coordinates."""
    up: Literal["x", "y", "z"] = "z"
    """The file's axis that points up; the world's is z. glTF and most .obj files: y."""
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
    cloud = points_from_file(_require_path(settings), max_points=limit, color=settings.color, generator=generator)
    if wanted is None or cloud.count <= min(wanted, max_points):
        return cloud
    _require_room(min(wanted, cloud.count), max_points)
    chosen = torch.randperm(cloud.count, generator=generator)[:wanted].sort().values
    return ColoredPoints(cloud.points[chosen], cloud.colors[chosen])


@INITIALIZATIONS.register("mesh")
def _mesh(settings: InitSettings, generator: torch.Generator, max_points: int, device: torch.device) -> ColoredPoints:
    count = _require_count(settings, max_points)
    return points_from_mesh(_require_path(settings), count, generator, color=settings.color)


@INITIALIZATIONS.register("shap-e")
def _shap_e(settings: InitSettings, generator: torch.Generator, max_points: int, device: torch.device) -> ColoredPoints:
    count = _require_count(settings, max_points)
    if not (settings.prompt or "").strip():
        raise ConfigError(
            "init.type is 'shap-e', which needs init.prompt, a text that says what to make (${system.prompt_processor.prompt} is the run's)"
        )
    if settings.linear_colors:
        raise ConfigError("init.linear_colors is for files; the colors of init.type 'shap-e' are converted already")
    shap_e = parse_settings(ShapESettings, settings.shap_e, "system.geometry.init.shap_e")
    mesh = shap_e_mesh(settings.prompt, shap_e, device)
    if shap_e.growing:
        return grown_points(mesh, count, generator, distance=shap_e.growing_distance)
    return points_on_mesh(mesh, count, generator)


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
    cloud = reorient(cloud, settings.up, settings.yaw)
    if settings.normalize:
        cloud = normalize(cloud, settings.radius)
    return ColoredPoints(cloud.points, linear_to_srgb(cloud.colors)) if settings.linear_colors else cloud


def _require_path(settings: InitSettings) -> str:
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
