"""Cameras of the tabletop world, in threestudio's conventions.

Azimuth 0 looks from +x (the front), grows toward +y; elevation toward +z; angles in degrees; vertical field of view; z is up.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

VIEWS: tuple[str, ...] = ("side", "front", "back", "overhead")
SIDE, FRONT, BACK, OVERHEAD = range(4)
FRONT_THRESHOLD, BACK_THRESHOLD, OVERHEAD_THRESHOLD = 45.0, 45.0, 60.0  # threestudio's prompt processor defaults
DISTANCE_RANGE, FOVY_RANGE, COVER_RANGE = (1.5, 4.0), (20.0, 60.0), (0.58, 1.0)


def view_labels(azimuth: Tensor, elevation: Tensor) -> Tensor:
    """Index into VIEWS by threestudio's rules: side unless front or back by azimuth, overhead beats all. Degrees, [B]."""
    azimuth = torch.remainder(azimuth + 180.0, 360.0) - 180.0
    view = torch.full_like(azimuth, SIDE, dtype=torch.int64)
    view[azimuth.abs() < FRONT_THRESHOLD] = FRONT
    view[azimuth.abs() > 180.0 - BACK_THRESHOLD] = BACK
    view[elevation > OVERHEAD_THRESHOLD] = OVERHEAD
    return view


def border_distance(azimuth: Tensor, elevation: Tensor) -> Tensor:
    """Degrees to the nearest border between two view labels, [B]. Close to one, the label is a matter of taste."""
    azimuth = (torch.remainder(azimuth + 180.0, 360.0) - 180.0).abs()
    around = torch.minimum((azimuth - FRONT_THRESHOLD).abs(), (azimuth - 180.0 + BACK_THRESHOLD).abs())
    above = elevation - OVERHEAD_THRESHOLD
    return torch.where(above > 0, above, torch.minimum(around, -above))


def _uniform(count: int, low: Tensor | float, high: Tensor | float, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(count, generator=generator)


def sample_angles(count: int, generator: torch.Generator, view: Tensor | None) -> tuple[Tensor, Tensor]:
    """Azimuth and elevation [count]; `view` [count] restricts them to that label's range."""
    azimuth = _uniform(count, -180.0, 180.0, generator)
    elevation = _uniform(count, -10.0, 45.0, generator)
    high = _uniform(count, 45.0, 85.0, generator)
    elevation = torch.where(torch.rand(count, generator=generator) < 0.25, high, elevation)
    if view is None:
        return azimuth, elevation
    margin = 2.0  # away from the border, where the label would be a matter of taste
    near = _uniform(count, -1.0, 1.0, generator)
    sign = torch.where(torch.rand(count, generator=generator) < 0.5, -1.0, 1.0)
    azimuth = torch.where(view == SIDE, sign * (90.0 + near * (90.0 - FRONT_THRESHOLD - margin)), azimuth)
    azimuth = torch.where(view == FRONT, near * (FRONT_THRESHOLD - margin), azimuth)
    azimuth = torch.where(view == BACK, 180.0 + near * (BACK_THRESHOLD - margin), azimuth)
    azimuth = torch.remainder(azimuth + 180.0, 360.0) - 180.0
    over = _uniform(count, OVERHEAD_THRESHOLD + margin, 85.0, generator)
    elevation = torch.where(view == OVERHEAD, over, elevation.clamp_max(OVERHEAD_THRESHOLD - margin))
    return azimuth, elevation


def distance_for_cover(radius: Tensor, fovy: Tensor, cover: float) -> Tensor:
    """Distance at which a sphere's silhouette fills `cover` of the frame's height. fovy in degrees."""
    return radius / torch.sin(torch.atan(cover * torch.tan(torch.deg2rad(fovy) / 2)))


def sample_distance(radius: Tensor, fovy: Tensor, generator: torch.Generator) -> Tensor:
    """Uniform over the distances in DISTANCE_RANGE at which the object covers COVER_RANGE of the frame. [B]"""
    nearest = distance_for_cover(radius, fovy, COVER_RANGE[1]).clamp(*DISTANCE_RANGE)
    farthest = distance_for_cover(radius, fovy, COVER_RANGE[0]).clamp(*DISTANCE_RANGE)
    return _uniform(len(radius), nearest, torch.maximum(farthest, nearest), generator)


def directions(azimuth: Tensor, elevation: Tensor) -> Tensor:
    """Unit vectors [B, 3] from the origin toward (azimuth, elevation) in degrees."""
    a, e = torch.deg2rad(azimuth), torch.deg2rad(elevation)
    return torch.stack([e.cos() * a.cos(), e.cos() * a.sin(), e.sin()], -1)


def camera_rays(azimuth: Tensor, elevation: Tensor, distance: Tensor, fovy: Tensor, center: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Eye points [B, 3] and unit ray directions [B, size * size, 3], rows from the top, square image."""
    eye = directions(azimuth, elevation) * distance[:, None]
    forward = torch.nn.functional.normalize(center - eye, dim=-1)
    up = torch.tensor([0.0, 0.0, 1.0], device=eye.device).expand_as(forward)
    right = torch.nn.functional.normalize(torch.linalg.cross(forward, up, dim=-1), dim=-1)
    up = torch.linalg.cross(right, forward, dim=-1)
    pixel = (torch.arange(size, device=eye.device, dtype=eye.dtype) + 0.5) / size * 2 - 1
    v, u = torch.meshgrid(-pixel, pixel, indexing="ij")
    tangent = torch.tan(fovy * (math.pi / 360.0))[:, None, None]
    rays = forward[:, None] + tangent * (u.reshape(1, -1, 1) * right[:, None] + v.reshape(1, -1, 1) * up[:, None])
    return eye, torch.nn.functional.normalize(rays, dim=-1)
