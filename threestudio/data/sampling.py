"""Pure functions that draw and place cameras. Angles in degrees as configs have them, field of view in radians on
return.

World: right-handed, z up, the front view's camera on +x. Position = r (cos e cos a, cos e sin a, sin e).
"""

from __future__ import annotations

import hashlib
import math

import torch
import torch.nn.functional as F
from torch import Tensor


def generator_for(seed: int, index: int) -> torch.Generator:
    """A CPU generator that depends on (seed, index) only; neighboring pairs give unrelated streams."""
    digest = hashlib.sha256(f"camera batch {seed} {index}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def uniform(count: int, limits: tuple[float, float], generator: torch.Generator) -> Tensor:
    """[count] numbers uniform in [low, high)."""
    low, high = limits
    return torch.rand(count, generator=generator) * (high - low) + low


def draw_elevation(count: int, limits: tuple[float, float], generator: torch.Generator) -> Tensor:
    """[count] elevations in degrees: with probability 1/2 (one coin for the batch) uniform in angle, else in area."""
    by_angle = bool(torch.rand((), generator=generator) < 0.5)
    if by_angle:
        return uniform(count, limits, generator)
    low, high = (math.sin(math.radians(limit)) for limit in limits)
    return torch.rad2deg(torch.asin(uniform(count, (low, high), generator).clamp(-1.0, 1.0)))


def draw_azimuth(count: int, limits: tuple[float, float], stratified: bool, generator: torch.Generator) -> Tensor:
    """[count] azimuths in degrees; stratified ones fall one into each of `count` equal parts of the range."""
    low, high = limits
    unit = torch.rand(count, generator=generator)
    if stratified:
        unit = (unit + torch.arange(count)) / count
    return unit * (high - low) + low


def spherical_to_cartesian(elevation_deg: Tensor, azimuth_deg: Tensor, distance: Tensor) -> Tensor:
    """[B] each -> positions [B, 3]."""
    elevation, azimuth = torch.deg2rad(elevation_deg), torch.deg2rad(azimuth_deg)
    direction = [elevation.cos() * azimuth.cos(), elevation.cos() * azimuth.sin(), elevation.sin()]
    return distance[:, None] * torch.stack(direction, dim=-1)


def look_at(position: Tensor, center: Tensor, up: Tensor, azimuth_deg: Tensor) -> Tensor:
    """Camera-to-world matrices (OpenGL axes) of cameras at `position` that look at `center`.

    Args:
        position, center, up: [B, 3]; `up` need not be orthogonal to the line of sight.
        azimuth_deg: [B], tells where right is when the camera looks straight along `up`.

    Returns:
        [B, 4, 4]; the rotation is orthonormal with determinant 1 for every B.
    """
    forward = F.normalize(center - position, dim=-1)
    right = torch.cross(forward, F.normalize(up, dim=-1), dim=-1)
    azimuth = torch.deg2rad(azimuth_deg)
    polar_right = torch.stack([-azimuth.sin(), azimuth.cos(), torch.zeros_like(azimuth)], dim=-1)
    polar_right = polar_right - (polar_right * forward).sum(-1, keepdim=True) * forward
    degenerate = right.norm(dim=-1, keepdim=True) < 1e-4
    right = F.normalize(torch.where(degenerate, polar_right, right), dim=-1)
    c2w = torch.zeros(position.shape[0], 4, 4)
    c2w[:, :3] = torch.stack([right, torch.cross(right, forward, dim=-1), -forward, position], dim=-1)
    c2w[:, 3, 3] = 1.0
    return c2w


def draw_lights_near_camera(position: Tensor, distance: Tensor, perturb: float, generator: torch.Generator) -> Tensor:
    """DreamFusion's point lights [B, 3]: in the camera's direction with normal noise, at `distance` [B] from the
    origin."""
    noise = torch.randn(position.shape, generator=generator) * perturb
    return F.normalize(position + noise, dim=-1) * distance[:, None]


def draw_lights_in_cone(position: Tensor, distance: Tensor, generator: torch.Generator) -> Tensor:
    """Magic3D's point lights [B, 3]: at most 60 degrees off the camera's direction, at `distance` [B] from the
    origin."""
    count = position.shape[0]
    z = F.normalize(position, dim=-1)
    horizontal = torch.stack([z[:, 1], -z[:, 0], torch.zeros(count)], dim=-1)
    # Over a pole there is no horizontal direction across z; any will do.
    polar = horizontal.norm(dim=-1, keepdim=True) < 1e-4
    x = F.normalize(torch.where(polar, torch.tensor([1.0, 0.0, 0.0]), horizontal), dim=-1)
    y = torch.cross(z, x, dim=-1)
    azimuth = torch.rad2deg(uniform(count, (-math.pi, math.pi), generator))
    elevation = torch.rad2deg(uniform(count, (math.pi / 6, math.pi / 2), generator))
    local = spherical_to_cartesian(elevation, azimuth, distance)
    return (torch.stack([x, y, z], dim=-1) @ local[..., None])[..., 0]
