"""The rasterizer to read: dense, pure torch, any dtype and device, differentiated by autograd.

Every pixel looks at every visible Gaussian. The fast backends are tested against this file in float64.
Unlike the numba backend it also passes gradients to the cameras.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .spherical_harmonics import sh_to_rgb
from .types import (
    ALPHA_MAX,
    ALPHA_THRESHOLD,
    DEPTH_EPS,
    EXTENT_MAX,
    FOV_MARGIN,
    TRANSMITTANCE_STOP,
    Rasterization,
    Scene,
)

# Pixel-Gaussian pairs looked at together. Several chunks are recomputed in the backward pass, so this bounds memory.
_PAIRS_PER_CHUNK = 1 << 23


class Projection(NamedTuple):
    """Gaussians as seen by each camera."""

    means2d: Tensor  # [C, N, 2] pixels; the center of the upper left pixel is (0.5, 0.5)
    depths: Tensor  # [C, N] camera z
    conics: Tensor  # [C, N, 3] xx, xy, yy of the inverse 2D covariance
    radii: Tensor  # [C, N, 2] int32 half extents in pixels, 0 where culled


def rasterize_reference(scene: Scene) -> Rasterization:
    """Render ``scene``. Memory and time grow with pixels x Gaussians: meant for tests and small scenes."""
    projection = project(scene)
    colors = view_colors(scene)
    images = [_render_camera(scene, projection, colors, camera) for camera in range(scene.viewmats.shape[0])]
    image = torch.stack(images)  # [C, H, W, 5]
    rgb, depth, alpha = image.split([3, 1, 1], dim=-1)
    return finish(scene, rgb, alpha, depth, **projection._asdict())


def finish(scene: Scene, rgb: Tensor, alpha: Tensor, accumulated_depth: Tensor, **projected: Tensor) -> Rasterization:
    """Put the background behind ``rgb``, turn accumulated into expected depth, and collect ``info``."""
    cameras = scene.viewmats.shape[0]
    if scene.background is not None:
        rgb = rgb + (1.0 - alpha) * scene.background[:, None, None, :]
    info = {
        **projected,
        "opacities": scene.opacities.expand(cameras, -1),
        "width": scene.width,
        "height": scene.height,
        "n_cameras": cameras,
        "gaussian_ids": None,
    }
    return Rasterization(rgb, alpha, accumulated_depth / alpha.clamp_min(DEPTH_EPS), info)


def quats_to_matrices(quats: Tensor) -> Tensor:
    """Rotation matrices [..., 3, 3] of quaternions [..., 4] in w, x, y, z order; any nonzero length."""
    w, x, y, z = F.normalize(quats, dim=-1).unbind(-1)
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))


def project(scene: Scene) -> Projection:
    """Perspective projection of every Gaussian into every camera (EWA splatting: Zwicker et al. 2001, eq. 31).

    Cov2D = J R Sigma R^T J^T + eps2d I, with J the Jacobian of the pinhole projection at the Gaussian's center; the
    point where J is taken is kept within ``FOV_MARGIN`` of the image, beyond which the linearisation explodes.
    """
    rotation, translation = scene.viewmats[:, None, :3, :3], scene.viewmats[:, None, :3, 3]
    centers = (rotation @ scene.means[None, :, :, None]).squeeze(-1) + translation  # [C, N, 3]
    axes = quats_to_matrices(scene.quats) * scene.scales[:, None, :]  # columns are scaled principal axes
    axes = rotation @ axes[None]  # [C, N, 3, 3]

    x, y, z = centers.unbind(-1)
    in_range = (z >= scene.near) & (z <= scene.far)
    safe_z = torch.where(in_range, z, torch.ones_like(z))
    fx, fy, cx, cy = (scene.Ks[:, None, i, j] for i, j in ((0, 0), (1, 1), (0, 2), (1, 2)))
    means2d = torch.stack([fx * x / safe_z + cx, fy * y / safe_z + cy], dim=-1)

    slope_x = _limit_slope(x / safe_z, fx, cx, scene.width)
    slope_y = _limit_slope(y / safe_z, fy, cy, scene.height)
    zero = torch.zeros_like(x)
    jacobian_x = torch.stack([fx / safe_z, zero, -fx * slope_x / safe_z], dim=-1)
    jacobian_y = torch.stack([zero, fy / safe_z, -fy * slope_y / safe_z], dim=-1)
    half = torch.stack([jacobian_x, jacobian_y], dim=-2) @ axes  # [C, N, 2, 3]
    cov = half @ half.transpose(-1, -2)
    cov_xx, cov_xy, cov_yy = cov[..., 0, 0] + scene.eps2d, cov[..., 0, 1], cov[..., 1, 1] + scene.eps2d
    det = cov_xx * cov_yy - cov_xy * cov_xy
    safe_det = torch.where(det > 0, det, torch.ones_like(det))
    conics = torch.stack([cov_yy, -cov_xy, cov_xx], dim=-1) / safe_det[..., None]

    radii = _footprint(scene, means2d.detach(), cov_xx.detach(), cov_yy.detach(), in_range & (det > 0))
    return Projection(means2d, z, conics, radii)


def _limit_slope(slope: Tensor, focal: Tensor, center: Tensor, size: int) -> Tensor:
    margin = FOV_MARGIN * 0.5 * size / focal
    return torch.minimum(torch.maximum(slope, -center / focal - margin), (size - center) / focal + margin)


def _footprint(scene: Scene, means2d: Tensor, cov_xx: Tensor, cov_yy: Tensor, visible: Tensor) -> Tensor:
    """Half extents [C, N, 2] of the box outside of which alpha is below the threshold; 0 for what is culled."""
    opaque = scene.opacities.detach() >= ALPHA_THRESHOLD
    log_ratio = torch.log(torch.where(opaque, scene.opacities.detach() / ALPHA_THRESHOLD, 1.0))
    extent = torch.sqrt(2.0 * log_ratio).clamp_max(EXTENT_MAX)
    radii = torch.ceil(extent[None, :, None] * torch.stack([cov_xx, cov_yy], dim=-1).sqrt())
    size = means2d.new_tensor([scene.width, scene.height])
    on_image = ((means2d + radii > 0) & (means2d - radii < size)).all(-1)
    visible = visible & opaque & on_image & (radii > 0).any(-1)
    return torch.where(visible[..., None], radii.clamp_max(2.0**30), torch.zeros_like(radii)).to(torch.int32)


def view_colors(scene: Scene) -> Tensor:
    """[C, N, 3] color of every Gaussian as seen from every camera."""
    cameras = scene.viewmats.shape[0]
    if scene.sh_degree is None:
        return scene.colors.expand(cameras, -1, -1)
    rotation, translation = scene.viewmats[:, :3, :3], scene.viewmats[:, :3, 3:]
    positions = -(rotation.transpose(1, 2) @ translation).squeeze(-1)  # [C, 3]
    directions = F.normalize(scene.means[None] - positions[:, None], dim=-1)
    return sh_to_rgb(scene.colors[None], directions, scene.sh_degree)


def _render_camera(scene: Scene, projection: Projection, colors: Tensor, camera: int) -> Tensor:
    """[H, W, 5]: color, accumulated depth and alpha, without background."""
    visible = torch.nonzero((projection.radii[camera] > 0).any(-1)).squeeze(-1)
    order = visible[torch.sort(projection.depths[camera, visible].detach(), stable=True).indices]
    means2d, conics = projection.means2d[camera, order], projection.conics[camera, order]
    depths = projection.depths[camera, order]
    features = torch.cat([colors[camera, order], depths[:, None], torch.ones_like(depths)[:, None]], dim=-1)

    ys, xs = torch.meshgrid(
        torch.arange(scene.height, device=means2d.device, dtype=means2d.dtype) + 0.5,
        torch.arange(scene.width, device=means2d.device, dtype=means2d.dtype) + 0.5,
        indexing="ij",
    )
    chunks = torch.stack([xs, ys], dim=-1).reshape(-1, 2).split(max(1, _PAIRS_PER_CHUNK // max(1, len(order))))
    inputs = (means2d, conics, scene.opacities[order], features)
    if len(chunks) == 1:
        rows = [composite(chunks[0], *inputs)]
    else:
        rows = [checkpoint(composite, pixels, *inputs, use_reentrant=False) for pixels in chunks]
    return torch.cat(rows).reshape(scene.height, scene.width, -1)


def composite(pixels: Tensor, means2d: Tensor, conics: Tensor, opacities: Tensor, features: Tensor) -> Tensor:
    """Front-to-back alpha compositing: sum_i T_i alpha_i f_i with T_i = prod_{j<i} (1 - alpha_j).

    Args:
        pixels: [P, 2] centers; means2d [M, 2], conics [M, 3], opacities [M], features [M, D]: nearest first.

    Returns:
        [P, D]
    """
    alpha = gaussian_alpha(pixels, means2d, conics, opacities)  # [P, M]
    after = torch.cumprod(1.0 - alpha, dim=-1)
    before = torch.cat([torch.ones_like(after[:, :1]), after[:, :-1]], dim=-1)[:, : after.shape[1]]
    weights = torch.where(after > TRANSMITTANCE_STOP, alpha * before, torch.zeros_like(alpha))
    return weights @ features


def gaussian_alpha(pixels: Tensor, means2d: Tensor, conics: Tensor, opacities: Tensor) -> Tensor:
    """[P, M] alpha of every Gaussian at every pixel, after clamp and threshold."""
    dx, dy = (means2d[None] - pixels[:, None]).unbind(-1)
    sigma = 0.5 * (conics[:, 0] * dx * dx + conics[:, 2] * dy * dy) + conics[:, 1] * dx * dy
    alpha = (opacities * torch.exp(-sigma)).clamp_max(ALPHA_MAX)
    return torch.where((sigma >= 0) & (alpha >= ALPHA_THRESHOLD), alpha, torch.zeros_like(alpha))
