"""From threestudio's cameras (OpenGL camera-to-world, field of view) to the rasterizer's (OpenCV, pixels)."""

from __future__ import annotations

import torch
from torch import Tensor


def world_to_camera(c2w: Tensor) -> Tensor:
    """[B, 4, 4] OpenGL camera-to-world (columns right, up, backward, position) to OpenCV world-to-camera.

    The latter's axes are right, down, forward. The inverse of a rigid motion is written out, so that the result is as
    rigid as float32 allows.
    """
    # The up and backward columns turn round. Without a tensor of signs, which would have to come from the host.
    rotation = torch.cat([c2w[:, :3, :1], -c2w[:, :3, 1:3]], dim=-1)
    inverse = rotation.transpose(1, 2)
    viewmats = torch.eye(4, dtype=c2w.dtype, device=c2w.device).repeat(len(c2w), 1, 1)
    viewmats[:, :3, :3] = inverse
    viewmats[:, :3, 3] = -(inverse @ c2w[:, :3, 3:]).squeeze(-1)
    return viewmats


def intrinsics(fovy: Tensor, height: int, width: int) -> Tensor:
    """[B, 3, 3] pinhole matrices in pixels, square pixels, principal point in the middle. `fovy` [B] is in radians."""
    focal = 0.5 * height / torch.tan(0.5 * fovy)
    Ks = fovy.new_zeros(len(fovy), 3, 3)
    Ks[:, 0, 0] = focal
    Ks[:, 1, 1] = focal
    Ks[:, 0, 2] = 0.5 * width
    Ks[:, 1, 2] = 0.5 * height
    Ks[:, 2, 2] = 1.0
    return Ks
