"""What volume renderers share: a batch's rays in a row, and the last steps to an image."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from threestudio.errors import UserError
from threestudio.models.estimators.marching import intersect_box
from threestudio.utils.volume_rendering import accumulate_along_rays


class Rays(NamedTuple):
    """All rays of a batch in a row, R = B H W."""

    origins: Tensor
    """[R, 3]"""
    directions: Tensor
    """[R, 3], of any length; distances t count in it."""
    lights: Tensor
    """[B, 3], the light of each view."""

    def points(self, ray_indices: Tensor, t: Tensor) -> Tensor:
        """World points [N, 3] at distances t [N] on the rays [N]."""
        return torch.addcmul(self.origins.index_select(0, ray_indices), self.directions_of(ray_indices), t[:, None])

    def directions_of(self, ray_indices: Tensor) -> Tensor:
        """Directions [N, 3] of the rays [N]."""
        return self.directions.index_select(0, ray_indices)

    def light_of(self, ray_indices: Tensor) -> Tensor:
        """Light positions [N, 3] of the rays [N]."""
        return self.lights.index_select(0, ray_indices // (len(self.origins) // len(self.lights)))

    def span(self, near: float, far: float, box: Tensor | None) -> tuple[Tensor, Tensor]:
        """First and last distance [R] between two planes and inside a box [2, 3]; equal where a ray misses it."""
        first = torch.full_like(self.origins[:, 0], near)
        last = torch.full_like(first, far)
        if box is not None:
            enter, leave = intersect_box(self.origins, self.directions, box)
            first, last = torch.maximum(first, enter), torch.minimum(last, leave)
            # A ray that misses the box gets no length; zero keeps points of rays that are parallel to it finite.
            hits = first < last
            first, last = torch.where(hits, first, 0.0), torch.where(hits, last, 0.0)
        return first, last


def background_behind(learned: Tensor, bg_color: Tensor | None) -> Tensor:
    """The background [B, H, W, C] that goes behind the object.

    Args:
        learned: [B, H, W, C], what the background says.
        bg_color: [B, C] or [B, H, W, C] instead of it, or None.
    """
    shape = learned.shape[:-1]
    if bg_color is None:
        return learned
    if bg_color.shape[:-1] == shape:
        return bg_color
    if bg_color.shape[:-1] == shape[:1]:
        return bg_color[:, None, None].expand(*shape, -1)
    raise UserError(
        f"bg_color has shape {list(bg_color.shape)}; it must be [B, C] or [B, H, W, C] with B, H, W = {list(shape)}."
    )


def composite(weights: Tensor, t_points: Tensor, colors: Tensor, ray_indices: Tensor, n_rays: int) -> dict[str, Tensor]:
    """What rays see of samples [N]: `opacity`, `depth`, `z_variance` [R, 1], `comp_rgb_fg` [R, C] for colors [N, C].

    The variance is that of the weights made to sum to 1, zero where opacity is at most 0.5 (HiFA, Zhu et al. 2023).
    """
    gather = partial(accumulate_along_rays, weights, ray_indices=ray_indices, n_rays=n_rays)
    opacity, depth, comp_rgb_fg = gather(None), gather(t_points[:, None]), gather(colors)
    seen = opacity.clamp(min=1e-5)
    z_variance = gather((t_points[:, None] - (depth / seen).index_select(0, ray_indices)) ** 2) / seen
    return {
        "comp_rgb_fg": comp_rgb_fg,
        "opacity": opacity,
        "depth": depth,
        "z_variance": torch.where(opacity > 0.5, z_variance, 0.0),
    }


def composite_normal(weights: Tensor, normals: Tensor, ray_indices: Tensor, opacity: Tensor) -> Tensor:
    """Mean normals n of the rays as colors (n + 1) / 2 * opacity [R, 3], from samples [N], [N, 3]; opacity [R, 1]."""
    mean = F.normalize(accumulate_along_rays(weights, normals, ray_indices, len(opacity)), dim=-1)
    return (mean + 1.0) / 2.0 * opacity
