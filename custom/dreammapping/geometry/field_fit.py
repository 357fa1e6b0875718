"""Fitting a radiance field to a solid shape."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Optional

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..initialization.shapes import SolidShape

_NEAR_SHARE = 0.5
"""Of the points, those near the surface; the rest fill the cube."""

_SPREAD = 3.0
"""Standard deviation of the near points' offsets, in widths."""

_POOL = 200_000
"""Most points whose distances are computed; batches are drawn from them."""


@dataclass(frozen=True)
class FitSettings:
    """How a radiance field is fitted to its first shape. Lengths in world units."""

    steps: int = 300
    """Of Adam, on all of the geometry's parameters."""
    lr: float = 0.02
    """At the first step; it falls to zero by a cosine."""
    batch_size: int = 8192
    """Points in each step."""
    density: Optional[float] = None
    """Deep inside. None: twice `isosurface_threshold`, which puts the extracted mesh on the shape's surface."""
    width: float = 0.02
    """Over which the density falls at the surface: to a sixth of `density` one width outside."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"fit.{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("lr", "width", "density"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ConfigError(f"fit.{name} is {value}; it must be above 0")


@dataclass(frozen=True)
class FitResult:
    """How well a field agrees with its shape, on points that were not trained on."""

    overlap: float
    """Intersection over union of "dense" (more than half of the density) and "inside"."""
    color_error: float
    """Mean absolute difference of colors near the surface, in [0, 1]; 0 if colors were not fitted."""


@dataclass(frozen=True)
class _Targets:
    points: Tensor  # [N, 3]
    density: Tensor  # [N]
    colors: Tensor  # [N, 3]
    colored: Tensor  # [N] bool, where a color matters


def density_of(distances: Tensor, density: float, width: float) -> Tensor:
    """Density at signed distances, negative inside: `density` times the Laplace distribution's CDF of scale `width`
    (Yariv et al. 2021, "Volume Rendering of Neural Implicit Surfaces", eqs. 2 and 3)."""
    tail = 0.5 * torch.exp(-distances.abs() / width)
    return density * torch.where(distances > 0, tail, 1 - tail)


def fit_field(
    field: nn.Module,
    shape: SolidShape,
    settings: FitSettings,
    *,
    radius: float,
    density: float,
    fit_colors: bool,
    generator: torch.Generator,
    report: Callable[[str], None],
) -> FitResult:
    """Change the parameters of `field` so that its density is the shape's, and its color near and in the shape too.

    The error of the density is of log(1 + density), which neither empty space nor a steep activation dominates.

    Args:
        field: called with points [N, 3] gives `density` [N, 1] and, for colors, `features` [N, 3], whose sigmoid is the color.
        radius: half side of the field's cube, world units.
        density: deep inside.
        generator: CPU generator of every draw.
        report: takes lines of progress.
    """
    device = next(field.parameters()).device
    pool = _targets(shape, settings, radius, density, min(_POOL, settings.steps * settings.batch_size), generator)
    parameters = [p for p in field.parameters() if p.requires_grad]
    kept = [p.grad for p in parameters]
    optimizer = torch.optim.Adam(parameters, lr=settings.lr, betas=(0.9, 0.99), eps=1e-15)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.steps)
    with torch.enable_grad(), torch.autocast(device.type, enabled=False):
        for step in range(settings.steps):
            rows = torch.randint(len(pool.points), (settings.batch_size,), generator=generator)
            loss = _loss(field, pool, rows, device, fit_colors)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if (step + 1) % max(1, settings.steps // 4) == 0:
                report(f"Fitting the field: step {step + 1} of {settings.steps}, error {float(loss.detach()):.4f}")
    for parameter, gradient in zip(parameters, kept):
        parameter.grad = gradient
    held_out = _targets(shape, settings, radius, density, 20_000, generator)
    return _result(field, held_out, density, device, fit_colors)


# ---------------------------------------------------------------------- inside


def _targets(
    shape: SolidShape, settings: FitSettings, radius: float, density: float, count: int, generator: torch.Generator
) -> _Targets:
    near_count = round(_NEAR_SHARE * count)
    offsets = torch.randn(near_count, 3, generator=generator) * (_SPREAD * settings.width)
    near = shape.surface_points(near_count, generator) + offsets
    free = (torch.rand(count - near_count, 3, generator=generator) * 2 - 1) * radius
    points = torch.cat([near, free]).clamp(-radius, radius)
    distances, colors = shape.query(points)
    return _Targets(points, density_of(distances, density, settings.width), colors, distances < 2 * _SPREAD * settings.width)


def _loss(field: nn.Module, pool: _Targets, rows: Tensor, device: torch.device, fit_colors: bool) -> Tensor:
    output = field(pool.points[rows].to(device))
    error = _compressed(output["density"][:, 0]) - _compressed(pool.density[rows].to(device))
    loss = error.square().mean()
    if not fit_colors:
        return loss
    mask = pool.colored[rows].to(device)[:, None]
    difference = (output["features"].sigmoid() - pool.colors[rows].to(device)) * mask
    return loss + difference.square().sum() / (3 * mask.sum()).clamp_min(1)


def _compressed(density: Tensor) -> Tensor:
    """log(1 + density); mirrored below zero, where some activations go."""
    return density.sign() * torch.log1p(density.abs())


@torch.no_grad()
def _result(field: nn.Module, held_out: _Targets, density: float, device: torch.device, fit_colors: bool) -> FitResult:
    output = field(held_out.points.to(device))
    dense, inside = output["density"][:, 0].cpu() > density / 2, held_out.density > density / 2
    union = int((dense | inside).sum())
    overlap = int((dense & inside).sum()) / union if union else 1.0
    if not fit_colors:
        return FitResult(overlap, 0.0)
    difference = (output["features"].sigmoid().cpu() - held_out.colors)[held_out.colored].abs()
    return FitResult(overlap, float(difference.mean()) if len(difference) else 0.0)
