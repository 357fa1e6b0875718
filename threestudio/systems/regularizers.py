"""Terms beside the guidance that volume renderings are trained with; `out` is what the renderer returned in training.

Shapes: B views of H x W pixels, Np samples on all rays together.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from threestudio.errors import ConfigError
from threestudio.utils.ops import binary_cross_entropy, dot


def orient(out: Mapping[str, Any]) -> Tensor:
    """Penalty on surfaces that look away from the camera (Ref-NeRF): sum w max(n . d, 0)^2 per pixel that is not empty.

    Reads `normal` and `t_dirs` [Np, 3], `weights` [Np, 1] and `opacity` [B, H, W, 1].

    Raises:
        ConfigError: the renderer returned no normals.
    """
    if "normal" not in out:
        raise ConfigError(
            "system.loss.lambda_orient needs normals, which this geometry and material do not give: set "
            "system.geometry.normal_type and a material that reads normals, or lambda_orient: 0."
        )
    away = dot(out["normal"], out["t_dirs"]).clamp(min=0.0)
    return (out["weights"].detach() * away.square()).sum() / (out["opacity"] > 0).sum().clamp(min=1)


def sparsity(out: Mapping[str, Any]) -> Tensor:
    """mean sqrt(opacity^2 + 0.01) (DreamFusion): emptiness costs least."""
    return (out["opacity"].square() + 0.01).sqrt().mean()


def opaque(out: Mapping[str, Any]) -> Tensor:
    """Binary entropy of the opacity, kept 0.001 away from 0 and 1: each pixel decides between object and background."""
    opacity = out["opacity"].clamp(1e-3, 1.0 - 1e-3)
    return binary_cross_entropy(opacity, opacity)


def z_variance(out: Mapping[str, Any]) -> Tensor:
    """Mean variance of the depth along the rays (HiFA) where the opacity exceeds 0.5; 0 where it nowhere does."""
    solid = out["z_variance"][out["opacity"] > 0.5]
    return solid.sum() / max(solid.numel(), 1)


def eikonal(out: Mapping[str, Any]) -> Tensor:
    """Mean squared deviation of |sdf_grad| [Np, 3] from 1, the length a signed distance's gradient has."""
    return (out["sdf_grad"].norm(dim=-1) - 1.0).square().mean()
