"""What every rasterizer backend shares: the result, the error and the constants of the image formation.

The semantics are gsplat's classic mode (perspective camera, no antialiasing compensation), so that an asset optimised
with one backend looks the same in the others and in the usual splat viewers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..errors import DreamMappingError

ALPHA_THRESHOLD = 1.0 / 255.0
"""A Gaussian whose alpha is below this at a pixel does not touch the pixel."""

ALPHA_MAX = 0.999
"""Alpha is clamped here, so that 1 - alpha never vanishes. Above it the gradient of alpha is zero."""

TRANSMITTANCE_STOP = 1e-4
"""A pixel is finished by the first Gaussian that would bring its transmittance to this or below; that one is left out."""

EXTENT_MAX = 3.33
"""Largest half width of the footprint in standard deviations: exp(-3.33^2 / 2) is just under 1/255."""

DEPTH_EPS = 1e-10
"""Smallest alpha that expected depth is divided by."""

FOV_MARGIN = 0.3
"""The Jacobian of the projection is evaluated at most this share of the image beyond its border."""


class RasterizationError(DreamMappingError):
    """Inputs that cannot be rasterized (shape, dtype, device, range), or a backend that cannot run here."""


@dataclass
class Rasterization:
    """One rendered batch. C cameras, H x W pixels, N Gaussians."""

    rgb: Tensor
    """[C, H, W, 3] color; includes the background where one was given."""
    alpha: Tensor
    """[C, H, W, 1] accumulated opacity in [0, 1]."""
    depth: Tensor
    """[C, H, W, 1] expected depth along the camera's z axis: accumulated depth / max(alpha, 1e-10); 0 where empty."""
    info: dict[str, Any]
    """gsplat's names with packed=False, as its densification strategies read them: ``means2d`` [C, N, 2] (pixels, in the
    graph, so ``retain_grad`` works), ``radii`` [C, N, 2] int32 (0 where culled), ``depths`` [C, N], ``conics`` [C, N, 3],
    ``opacities`` [C, N], ``width``, ``height``, ``n_cameras``, ``gaussian_ids`` (None). Entries of culled Gaussians
    other than their radii are meaningless."""


@dataclass(frozen=True)
class Scene:
    """The validated arguments of one rasterize call, as every backend receives them."""

    means: Tensor  # [N, 3]
    quats: Tensor  # [N, 4] w, x, y, z
    scales: Tensor  # [N, 3]
    opacities: Tensor  # [N]
    colors: Tensor  # [N, 3] or [N, K, 3]
    viewmats: Tensor  # [C, 4, 4]
    Ks: Tensor  # [C, 3, 3]
    width: int
    height: int
    sh_degree: int | None
    near: float
    far: float
    background: Tensor | None  # [C, 3]
    eps2d: float
