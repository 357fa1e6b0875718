"""Colours and surface patterns of the tabletop world."""

from __future__ import annotations

import torch
from torch import Tensor

COLOR_RGB: dict[str, tuple[float, float, float]] = {
    "red": (0.86, 0.07, 0.08), "orange": (1.00, 0.48, 0.02), "yellow": (1.00, 0.88, 0.10), "green": (0.10, 0.60, 0.16),
    "turquoise": (0.10, 0.80, 0.78), "blue": (0.09, 0.22, 0.86), "purple": (0.48, 0.12, 0.70), "pink": (1.00, 0.52, 0.74),
    "brown": (0.42, 0.23, 0.10), "black": (0.06, 0.06, 0.07), "white": (0.96, 0.96, 0.96), "gray": (0.48, 0.48, 0.49),
}
COLORS: tuple[str, ...] = tuple(COLOR_RGB)
PATTERNS: tuple[str, ...] = ("plain", "striped", "checkered", "dotted", "zigzag", "wooden", "metallic")
PLAIN, STRIPED, CHECKERED, DOTTED, ZIGZAG, WOODEN, METALLIC = range(7)

WOOD_RGB = (0.72, 0.47, 0.24)  # natural colour of anything wooden
SILVER_RGB = (0.72, 0.73, 0.75)  # natural colour of anything metallic


def second_color(main: Tensor) -> Tensor:
    """The other colour of a two-colour pattern: white, or dark gray on light objects. main [..., 3]."""
    light = main.amin(-1, keepdim=True) > 0.68
    return torch.where(light, torch.full_like(main, 0.22), torch.full_like(main, 0.97))


def surface_coordinates(points: Tensor, normals: Tensor) -> tuple[Tensor, Tensor]:
    """Box projection: ([N], [N]) coordinates along and up the face that the normal looks out of."""
    x, y, z = points.unbind(-1)
    nx, ny, nz = normals.unbind(-1)
    top = nz.abs() > 0.8
    along = torch.where(top | (nx.abs() > ny.abs()), y, x)
    return along, torch.where(top, x, z)


def _triangle(x: Tensor) -> Tensor:
    """Triangle wave of period 1 between 0 and 1."""
    return 2 * (x - torch.floor(x) - 0.5).abs()


def pattern_mask(points: Tensor, normals: Tensor, pattern: Tensor, period: Tensor, phase: Tensor) -> Tensor:
    """1 where a two-colour pattern shows its second colour.

    Args:
        points, normals: [N, 3]. pattern: [N] int64. period: [N] length of one repeat. phase: [N] in [0, 1].
    """
    along, up = surface_coordinates(points, normals)
    a, b = along / period + phase, up / period + phase
    striped = (b - torch.floor(b)) > 0.5
    checkered = torch.remainder(torch.floor(a * 1.6) + torch.floor(b * 1.6), 2) > 0.5
    row = torch.floor(b * 1.25)
    da = a * 1.25 + 0.5 * torch.remainder(row, 2)
    dots = (da - torch.floor(da) - 0.5).square() + (b * 1.25 - row - 0.5).square() < 0.085
    bent = b + 0.45 * _triangle(a * 0.9)
    zigzag = (bent - torch.floor(bent)) > 0.5
    mask = torch.zeros_like(along, dtype=torch.bool)
    for index, shown in ((STRIPED, striped), (CHECKERED, checkered), (DOTTED, dots), (ZIGZAG, zigzag)):
        mask = torch.where(pattern == index, shown, mask)
    return mask.to(points.dtype)


def wood_grain(points: Tensor, phase: Tensor) -> Tensor:
    """Darkening in [0, 1] by growth rings around a slightly tilted, wavy axis. points [N, 3], phase [N]."""
    x, y, z = points.unbind(-1)
    turn = 6.2832 * phase
    x = x + 0.35 + 0.05 * torch.sin(7 * z + turn)
    y = y + 0.25 * z + 0.05 * torch.sin(5 * z + 2 + turn)
    ring = torch.sqrt(x * x + y * y) * 11 + 0.25 * torch.sin(23 * z + 3 * y)
    ring = ring - torch.floor(ring)
    return ring.square() * (1 - torch.relu(ring - 0.85) / 0.15)


def environment(directions: Tensor) -> Tensor:
    """Brightness [N] of a studio: dark floor, bright horizon, two soft boxes; for metal. directions [N, 3], z up."""
    x, y, z = directions.unbind(-1)
    sky = torch.sigmoid((z - 0.05) * 14) * (0.95 - 0.45 * z)
    boxes = torch.sigmoid((x * 0.6 + y * 0.5 + z * 0.6 - 0.78) * 30) + torch.sigmoid((z * 0.4 - x * 0.5 - y * 0.75 - 0.78) * 30)
    floor = 0.10 + 0.30 * torch.relu(-z)
    return sky + floor + 0.9 * boxes


def surface_color(base: Tensor, main: Tensor, points: Tensor, normals: Tensor, pattern: Tensor, period: Tensor, phase: Tensor) -> Tensor:
    """Albedo [N, 3] from the primitive's colour, with the pattern where main [N] is 1 (other parts stay plain)."""
    mask = (pattern_mask(points, normals, pattern, period, phase) * main)[:, None]
    color = base + mask * (second_color(base) - base)
    wooden = ((pattern == WOODEN).to(base.dtype) * main)[:, None]
    wood = base.new_tensor(WOOD_RGB)
    grain = wood_grain(points, phase)[:, None]
    # A quarter of timber in the paint, and grain that stays visible on black.
    timber = (0.8 * base + 0.2 * wood) * (1 - 0.55 * grain) + 0.10 * (1 - grain) * wood
    return color + wooden * (timber - color)
