"""What the density fields share: the blob a scene starts as, and normals from differences of a density."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def gaussian_blob(points: Tensor, scale: float, std: float) -> Tensor:
    """`scale * exp(-|x|^2 / (2 std^2))`, [..., 3] -> [..., 1] (DreamFusion, section 3.2)."""
    return scale * torch.exp(-0.5 * (points * points).sum(-1, keepdim=True) / std**2)


def cone_blob(points: Tensor, scale: float, std: float) -> Tensor:
    """`scale * (1 - |x| / std)`, [..., 3] -> [..., 1] (Magic3D, section 4.1). Its gradient at the origin is 0."""
    return scale * (1 - points.norm(dim=-1, keepdim=True) / std)


def central_difference_normal(density: Callable[[Tensor], Tensor], points: Tensor, eps: float, radius: float) -> Tensor:
    """Unit normals [..., 3], against the gradient of `density`, from differences over 2 `eps` along each axis.

    The neighbors are kept in the cube of half side `radius`, outside of which the field means nothing.
    """
    steps = eps * torch.eye(3, device=points.device, dtype=points.dtype)
    neighbors = points[..., None, None, :] + torch.stack([steps, -steps])  # [..., 2, 3, 3]: side, axis, xyz
    ahead, behind = density(neighbors.clamp(-radius, radius))[..., 0].unbind(-2)
    return F.normalize((behind - ahead) / (2 * eps), dim=-1)


def forward_difference_normal(
    density: Callable[[Tensor], Tensor], points: Tensor, here: Tensor, eps: float, radius: float
) -> Tensor:
    """As `central_difference_normal`, from the density `here` [..., 1] and that `eps` ahead along each axis."""
    neighbors = points[..., None, :] + eps * torch.eye(3, device=points.device, dtype=points.dtype)  # [..., 3, 3]
    ahead = density(neighbors.clamp(-radius, radius))[..., 0]
    return F.normalize((here - ahead) / eps, dim=-1)
