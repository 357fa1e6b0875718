"""The CUDA backend: gsplat's own kernels behind this package's signature."""

from __future__ import annotations

import torch

from .checks import require_dtype
from .reference import rasterize_reference
from .types import Rasterization, RasterizationError, Scene


def rasterize_gsplat(scene: Scene) -> Rasterization:
    """Render with gsplat (classic mode, not packed, RGB and expected depth in one pass). CUDA float32 tensors only.

    Raises:
        RasterizationError: tensors elsewhere than on a CUDA device, another dtype, or gsplat not installed.
    """
    _require_cuda(scene)
    require_dtype(scene, torch.float32, "gsplat")
    rasterization = _import_gsplat()
    if scene.means.shape[0] == 0:  # gsplat divides by the number of Gaussians
        return rasterize_reference(scene)
    image, alpha, info = rasterization(
        scene.means,
        scene.quats,
        scene.scales,
        scene.opacities,
        scene.colors,
        scene.viewmats,
        scene.Ks,
        scene.width,
        scene.height,
        near_plane=scene.near,
        far_plane=scene.far,
        eps2d=scene.eps2d,
        sh_degree=scene.sh_degree,
        packed=False,
        backgrounds=scene.background,
        render_mode="RGB+ED",
        absgrad=False,
        rasterize_mode="classic",
    )
    return Rasterization(image[..., :3], alpha, image[..., 3:], info)


def _require_cuda(scene: Scene) -> None:
    # Asked before the import: without CUDA gsplat's own message speaks of a missing compiler.
    if scene.means.device.type != "cuda":
        available = "is available" if torch.cuda.is_available() else "is not available on this machine"
        raise RasterizationError(
            f"rasterize: the gsplat backend needs CUDA tensors, got tensors on {scene.means.device} (CUDA {available}). "
            f"Move them to 'cuda', or use backend='numba' (CPU) or backend='auto'."
        )


def _import_gsplat():
    try:
        from gsplat import rasterization
    except ImportError as error:
        raise RasterizationError(
            "rasterize: CUDA tensors are rendered by gsplat, which cannot be imported "
            f"({error}). Install it with `pip install gsplat` (it needs a CUDA build of torch and compiles its kernels "
            "at first use), or move the tensors to the CPU."
        ) from error
    return rasterization
