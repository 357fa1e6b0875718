"""What batches of cameras are made of: rays and matrices from poses, and the settings that may be lists."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from threestudio import warn
from threestudio.errors import ConfigError
from threestudio.utils.cameras import get_mvp_matrix, get_projection_matrix, get_rays

NEAR, FAR = 0.01, 100.0
"""Clip distances of `mvp_mtx`, world units."""


def camera_rays(c2w: Tensor, fovy: Tensor, height: int, unit_directions: Tensor, normalize: bool) -> dict[str, Tensor]:
    """rays_o, rays_d [B, H, W, 3] of poses [B, 4, 4] and fields of view [B] in radians, on their device."""
    focal = 0.5 * height / torch.tan(0.5 * fovy)
    directions = unit_directions.expand(len(fovy), -1, -1, -1).clone()
    directions[..., :2] /= focal[:, None, None, None]
    rays_o, rays_d = get_rays(directions, c2w, keepdim=True, normalize=normalize)
    return {"rays_o": rays_o, "rays_d": rays_d}


def camera_matrices(c2w: Tensor, fovy: Tensor, height: int, width: int) -> dict[str, Tensor]:
    """The small part of a batch that follows from poses [B, 4, 4] and fields of view [B] in radians."""
    proj_mtx = get_projection_matrix(fovy, width / height, NEAR, FAR)
    return {
        "mvp_mtx": get_mvp_matrix(c2w, proj_mtx),
        "proj_mtx": proj_mtx,
        "c2w": c2w,
        "fovy": fovy,
    }


def limits(cfg: Any, name: str) -> tuple[float, float]:
    values = [float(value) for value in cfg[name]] if hasattr(cfg, "keys") else [float(v) for v in getattr(cfg, name)]
    if len(values) != 2 or values[0] > values[1]:
        raise ConfigError(f"data.{name} is {values}; it must be two numbers, the smaller one first.")
    return values[0], values[1]


def size_lists(cfg: Any) -> tuple[list[list[int]], list[int]]:
    """Heights, widths and batch sizes as lists of one length, and the milestones between their entries."""
    names = ("height", "width", "batch_size")
    given = {name: getattr(cfg, name) for name in names}
    lists = {name: [value] if isinstance(value, (int, float)) else list(value) for name, value in given.items()}
    milestones = [int(step) for step in cfg.resolution_milestones]
    count = max(len(values) for values in lists.values())
    if count == 1 and milestones:
        warn("data.resolution_milestones is ignored: height, width and batch_size are single values.")
        milestones = []
    if len(milestones) != count - 1 or milestones != sorted(milestones):
        raise ConfigError(
            f"data.resolution_milestones is {milestones}; with lists of {count} sizes it must be {count - 1} "
            "rising steps."
        )
    for name, values in lists.items():
        if len(values) not in (1, count) or any(int(value) != value or value < 1 for value in values):
            raise ConfigError(
                f"data.{name} is {values}; it must be a positive whole number or a list of {count}, as the others."
            )
    return [[int(value) for value in (lists[name] * count)[:count]] for name in names], milestones
