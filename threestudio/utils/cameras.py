"""Rays and projection matrices.

Conventions of the whole core: the world is right-handed with z up. A camera is a camera-to-world matrix `c2w` [4, 4] in
OpenGL axes: columns right, up, backward (it looks along its own -z) and position. Row 0 of an image is its top.
Batches carry the vertical field of view `fovy` in radians; the focal length in pixels is `0.5 * H / tan(0.5 * fovy)`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from threestudio.errors import ConfigError


def get_ray_directions(
    H: int,
    W: int,
    focal: float | tuple[float, float],
    principal: tuple[float, float] | None = None,
    use_pixel_centers: bool = True,
) -> Tensor:
    """Directions of all pixels in camera space, not normalized: their z is -1.

    Args:
        H, W: image size in pixels.
        focal: focal length in pixels; a pair (fx, fy) needs `principal`, a number puts the principal point at the
            center.
        principal: (cx, cy) in pixels.
        use_pixel_centers: rays go through pixel centers (+0.5) rather than their upper left corners.

    Returns:
        [H, W, 3] float32, `((x - cx) / fx, -(y - cy) / fy, -1)`.
    """
    shift = 0.5 if use_pixel_centers else 0.0
    if isinstance(focal, (int, float)):
        fx = fy = float(focal)
        cx, cy = W / 2, H / 2
    else:
        if principal is None:
            raise ConfigError("get_ray_directions: a pair of focal lengths also needs the principal point (cx, cy).")
        fx, fy = focal
        cx, cy = principal
    y, x = torch.meshgrid(
        torch.arange(H, dtype=torch.float32) + shift, torch.arange(W, dtype=torch.float32) + shift, indexing="ij"
    )
    return torch.stack([(x - cx) / fx, -(y - cy) / fy, -torch.ones_like(x)], dim=-1)


def get_rays(
    directions: Tensor,
    c2w: Tensor,
    keepdim: bool = False,
    noise_scale: float = 0.0,
    normalize: bool = True,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Rays in world space.

    Args:
        directions: camera space, [N, 3], [H, W, 3] or [B, H, W, 3].
        c2w: [4, 4] or [B, 4, 4] ([N, 4, 4] or [1, 4, 4] for directions [N, 3]).
        keepdim: keep the image shape; otherwise both results are flattened to [-1, 3].
        noise_scale: if positive, one random normal 3-vector times this is added to all origins, another to all
            directions.
        normalize: make directions unit length. Without it, depth along a ray is depth along the optical axis.
        generator: CPU generator of the noise.

    Returns:
        `rays_o`, `rays_d` of the same shape.
    """
    if directions.shape[-1] != 3 or directions.ndim not in (2, 3, 4) or c2w.ndim not in (2, 3):
        raise ConfigError(
            f"get_rays: directions {tuple(directions.shape)} and c2w {tuple(c2w.shape)} do not fit; directions are "
            "[N,3], [H,W,3] or [B,H,W,3], c2w is [4,4] or [B,4,4]."
        )
    rotation, position = c2w[..., :3, :3], c2w[..., :3, 3]
    if c2w.ndim == 3 and directions.ndim > 2:
        rotation, position = rotation[:, None, None], position[:, None, None]
    rays_d = (directions[..., None, :] * rotation).sum(-1)
    rays_o = position.expand_as(rays_d)
    if noise_scale > 0:
        noise = torch.randn(2, 3, generator=generator).to(rays_d)
        rays_o, rays_d = rays_o + noise[0] * noise_scale, rays_d + noise[1] * noise_scale
    if normalize:
        rays_d = torch.nn.functional.normalize(rays_d, dim=-1)
    if not keepdim:
        rays_o, rays_d = rays_o.reshape(-1, 3), rays_d.reshape(-1, 3)
    return rays_o, rays_d


def get_projection_matrix(fovy: Tensor, aspect_wh: float, near: float, far: float) -> Tensor:
    """OpenGL perspective with the y row negated, so that clip-space y grows downward like image rows.

    Args:
        fovy: [B] radians.  aspect_wh: width / height.  near, far: clip distances, 0 < near < far.

    Returns:
        [B, 4, 4], for column vectors.
    """
    cotangent = 1.0 / torch.tan(fovy / 2.0)
    matrix = fovy.new_zeros(fovy.shape[0], 4, 4, dtype=torch.float32)
    matrix[:, 0, 0] = cotangent / aspect_wh
    matrix[:, 1, 1] = -cotangent
    matrix[:, 2, 2] = -(far + near) / (far - near)
    matrix[:, 2, 3] = -2.0 * far * near / (far - near)
    matrix[:, 3, 2] = -1.0
    return matrix


def invert_pose(c2w: Tensor) -> Tensor:
    """Inverse of rigid transforms [..., 4, 4], by transposing the rotation (exact where a solver is not)."""
    rotation = c2w[..., :3, :3].transpose(-1, -2)
    inverse = torch.zeros_like(c2w)
    inverse[..., :3, :3] = rotation
    inverse[..., :3, 3:] = -rotation @ c2w[..., :3, 3:]
    inverse[..., 3, 3] = 1.0
    return inverse


def get_mvp_matrix(c2w: Tensor, proj_mtx: Tensor) -> Tensor:
    """World to clip space: `proj @ inverse(c2w)`, [B, 4, 4], for column vectors."""
    return proj_mtx @ invert_pose(c2w)


def get_full_projection_matrix(c2w: Tensor, proj_mtx: Tensor) -> Tensor:
    """Product of two transposed (row-vector) matrices [4, 4]: view first, then projection."""
    return c2w @ proj_mtx


def convert_pose(C2W: Tensor) -> Tensor:
    """Swap a pose [4, 4] between OpenGL and OpenCV camera axes by flipping its y and z columns."""
    return C2W * C2W.new_tensor([1.0, -1.0, -1.0, 1.0])


def get_projection_matrix_gaussian(
    znear: float, zfar: float, fovX: float | Tensor, fovY: float | Tensor, device: torch.device | str = "cpu"
) -> Tensor:
    """Projection [4, 4] of Gaussian rasterizers: OpenCV axes, depth mapped to [0, 1], `P[3, 2] = 1`."""
    matrix = torch.zeros(4, 4, device=device)
    matrix[0, 0] = 1.0 / math.tan(float(fovX) / 2.0)
    matrix[1, 1] = 1.0 / math.tan(float(fovY) / 2.0)
    matrix[2, 2] = zfar / (zfar - znear)
    matrix[2, 3] = -(zfar * znear) / (zfar - znear)
    matrix[3, 2] = 1.0
    return matrix


def get_fov_gaussian(P: Tensor) -> tuple[float, float]:
    """Fields of view (fovX, fovY) in radians of a projection [4, 4]."""
    return 2.0 * math.atan(1.0 / abs(float(P[0, 0]))), 2.0 * math.atan(1.0 / abs(float(P[1, 1])))


def get_cam_info_gaussian(
    c2w: Tensor, fovx: float | Tensor, fovy: float | Tensor, znear: float, zfar: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Camera in the form INRIA-style Gaussian rasterizers take.

    Args:
        c2w: [4, 4], OpenGL axes.  fovx, fovy: radians.  znear, zfar: clip distances.

    Returns:
        `world_view_transform` [4, 4] and `full_proj_transform` [4, 4], both transposed (for row vectors), and
        `camera_center` [3]; all on the device of `c2w`.
    """
    world_view = invert_pose(convert_pose(c2w)).transpose(0, 1).float()
    projection = get_projection_matrix_gaussian(znear, zfar, fovx, fovy, device=c2w.device).transpose(0, 1)
    return world_view, get_full_projection_matrix(world_view, projection), c2w[:3, 3].float()
