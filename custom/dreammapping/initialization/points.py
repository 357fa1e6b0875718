"""Colored points, what every initialization gives."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ConfigError


@dataclass(frozen=True)
class ColoredPoints:
    """A point cloud. N points."""

    points: Tensor
    """[N, 3] float32 world positions, z up."""
    colors: Tensor
    """[N, 3] float32 in [0, 1], as displayed (sRGB)."""

    @property
    def count(self) -> int:
        """N."""
        return self.points.shape[0]


_TO_Z_UP = {
    "z": torch.eye(3),
    "y": torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]]),  # a quarter turn about x: y becomes z
    "x": torch.tensor([[0.0, 0.0, -1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]),  # a quarter turn about y: x becomes z
    "-z": torch.tensor([[1.0, 0.0, 0.0], [0.0, -1.0, 0.0], [0.0, 0.0, -1.0]]),  # half a turn about x
    "-y": torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, -1.0, 0.0]]),
    "-x": torch.tensor([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]]),
}


def rotation_to_z_up(up: str = "z", yaw: float = 0.0) -> Tensor:
    """[3, 3] rotation that turns the axis `up` ("x", "y", "z", "-x", "-y", "-z") to z, then by `yaw` degrees about z
    (counterclockwise)."""
    if up not in _TO_Z_UP:
        raise ConfigError(f"the up axis is {up!r}; it must be one of {', '.join(map(repr, _TO_Z_UP))}")
    c, s = math.cos(math.radians(yaw)), math.sin(math.radians(yaw))
    return torch.tensor([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]]) @ _TO_Z_UP[up]


def reorient(cloud: ColoredPoints, up: str = "z", yaw: float = 0.0) -> ColoredPoints:
    """Turn a cloud by `rotation_to_z_up`."""
    turn = rotation_to_z_up(up, yaw)
    if up == "z" and yaw == 0.0:
        return cloud
    return ColoredPoints(cloud.points @ turn.T.to(cloud.points), cloud.colors)


def center_and_scale(points: Tensor, radius: float) -> tuple[Tensor, float]:
    """The center [3] of the bounding box of points [N, 3], and the factor that brings the farthest to distance `radius`.

    Points without extent (one, or all equal) have the factor 1.
    """
    if not (math.isfinite(radius) and radius > 0):
        raise ConfigError(f"the radius is {radius}; it must be above 0")
    center = (points.amin(0) + points.amax(0)) / 2
    extent = float((points - center).norm(dim=-1).max())
    return center, radius / extent if extent > 0 else 1.0


def normalize(cloud: ColoredPoints, radius: float) -> ColoredPoints:
    """Center the bounding box on the origin and scale so that the farthest point lies at distance `radius`."""
    center, factor = center_and_scale(cloud.points, radius)
    return ColoredPoints((cloud.points - center) * factor, cloud.colors)


def linear_to_srgb(colors: Tensor) -> Tensor:
    """Linear light to display values (IEC 61966-2-1), limited to [0, 1]. Shap-E's mesh colors come linear."""
    colors = colors.clamp(0.0, 1.0)
    return torch.where(colors <= 0.0031308, 12.92 * colors, 1.055 * colors.clamp_min(1e-8) ** (1 / 2.4) - 0.055)


def srgb_to_linear(colors: Tensor) -> Tensor:
    """Display values to linear light, the inverse of `linear_to_srgb`, limited to [0, 1]."""
    colors = colors.clamp(0.0, 1.0)
    return torch.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)
