"""Gaussians that are there already: splat files as a start."""

from __future__ import annotations

import torch

from ..errors import ConfigError
from ..gaussians.files import load_gaussians
from ..gaussians.model import GaussianModel
from ..gaussians.transform import transform_gaussians
from .points import ColoredPoints, center_and_scale, rotation_to_z_up
from .settings import INITIALIZATIONS, InitSettings, require_path, up_axis

VISIBLE = 0.1
"""Gaussians of less opacity do not count as part of the object's extent: captured splats are full of them."""


def initial_gaussians(settings: InitSettings) -> GaussianModel:
    """All Gaussians of the file `settings.path`, placed in the world by `up`, `yaw`, `normalize` and `radius`.

    They keep the file's SH degree. The extent is that of the Gaussians' centers.

    Raises:
        ConfigError: settings that do not fit.
        GaussianFileError: a file that cannot be used.
    """
    if settings.linear_colors:
        raise ConfigError("init.linear_colors is for meshes and points; the colors of a splat are those that are displayed")
    model = load_gaussians(require_path(settings))
    rotation = rotation_to_z_up(up_axis(settings), settings.yaw)
    center, factor = torch.zeros(3), 1.0
    if settings.normalize:
        center, factor = center_and_scale(_visible(model).points @ rotation.T, settings.radius)
    return transform_gaussians(model, rotation, center=center, factor=factor)


@INITIALIZATIONS.register("splat")
def _splat(settings: InitSettings, generator: torch.Generator, max_points: int, device: torch.device) -> ColoredPoints:
    """The visible Gaussians as points, for geometries that have none."""
    return _visible(load_gaussians(require_path(settings)))


def _visible(model: GaussianModel) -> ColoredPoints:
    """Centers and colors of the visible Gaussians; of all, if none is."""
    visible = model.get_opacities.detach() >= VISIBLE
    if not bool(visible.any()):
        visible = torch.ones_like(visible)
    return ColoredPoints(model.get_means.detach()[visible], model.get_rgb.detach()[visible].clamp(0.0, 1.0))
