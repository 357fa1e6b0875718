"""Points in and on a sphere."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ..errors import ConfigError
from ..gaussians.model import SH_C0
from .points import ColoredPoints

SphereDistribution = Literal["center", "ball", "surface"]


def sphere_points(
    count: int,
    radius: float,
    generator: torch.Generator,
    *,
    distribution: SphereDistribution = "center",
    color: str | tuple[float, float, float] | list[float] = "gray",
) -> ColoredPoints:
    """`count` random points round the origin.

    Args:
        radius: of the sphere, world units, > 0.
        generator: CPU generator.
        distribution: "center": distance uniform in [0, radius], so denser towards the center (LucidDreamer's sphere).
            "ball": uniform in the volume. "surface": uniform on the surface.
        color: as `choose_colors` takes it.
    """
    if count < 1:
        raise ConfigError(f"num_points is {count}; it must be at least 1")
    if not 0 < radius < float("inf"):
        raise ConfigError(f"the radius is {radius}; it must be above 0")
    directions = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=-1)
    share = torch.rand(count, 1, generator=generator)
    if distribution == "ball":
        share = share ** (1 / 3)
    elif distribution == "surface":
        share = torch.ones_like(share)
    elif distribution != "center":
        raise ConfigError(f"the distribution is {distribution!r}; it must be one of 'center', 'ball', 'surface'")
    return ColoredPoints(radius * share * directions, choose_colors(count, color, generator))


def choose_colors(count: int, color: str | tuple[float, float, float] | list[float], generator: torch.Generator) -> Tensor:
    """[count, 3] colors in [0, 1]: "gray" (0.5, with LucidDreamer's tiny variation), "random" (uniform), or one r, g, b."""
    if color == "gray":
        # LucidDreamer draws SH coefficients uniformly from [0, 1/255).
        return 0.5 + SH_C0 / 255 * torch.rand(count, 3, generator=generator)
    if color == "random":
        return torch.rand(count, 3, generator=generator)
    if isinstance(color, str):
        raise ConfigError(f"the color is {color!r}; it must be 'gray', 'random' or three numbers from 0 to 1")
    values = torch.tensor([float(c) for c in color])
    if values.shape != (3,) or not bool(((values >= 0) & (values <= 1)).all()):
        raise ConfigError(f"the color is {list(color)}; it must be three numbers from 0 to 1")
    return values.expand(count, 3).clone()
