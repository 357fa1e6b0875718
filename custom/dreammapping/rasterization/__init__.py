"""Differentiable rasterization of 3D Gaussians: one function, three backends.

``gsplat`` runs on CUDA, ``numba`` on the CPU; ``reference`` is pure torch, slow, and the one to read.
"""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

from .checks import check_scene
from .reference import rasterize_reference
from .types import Rasterization, RasterizationError, Scene

__all__ = ["BACKENDS", "Rasterization", "RasterizationError", "rasterize"]

BACKENDS = ("auto", "gsplat", "numba", "reference")


def rasterize(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    colors: Tensor,
    viewmats: Tensor,
    Ks: Tensor,
    width: int,
    height: int,
    *,
    sh_degree: int | None = None,
    near: float = 0.01,
    far: float = 1e10,
    background: Tensor | None = None,
    eps2d: float = 0.3,
    backend: str = "auto",
) -> Rasterization:
    """Render N Gaussians into C pinhole cameras (gsplat's classic mode).

    Gradients flow to means, quats, scales, opacities, colors and background from rgb, alpha and depth. The cameras get
    gradients from the ``gsplat`` and ``reference`` backends only; ``numba`` refuses cameras that ask for them.

    Args:
        means: [N, 3] world positions. N may be 0.
        quats: [N, 4] rotations in w, x, y, z order; need not be normalised.
        scales: [N, 3] standard deviations along the principal axes, > 0 (not their logarithm).
        opacities: [N] in (0, 1) (not logits).
        colors: [N, 3], or spherical-harmonics coefficients [N, K, 3] when ``sh_degree`` is given.
        viewmats: [C, 4, 4] world to camera, OpenCV axes (x right, y down, z forward), rigid.
        Ks: [C, 3, 3] intrinsics in pixels, no skew.
        width, height: image size in pixels.
        sh_degree: 0 to 4; the color is max(0, SH(direction) + 0.5). K may exceed (sh_degree + 1)^2.
        near, far: Gaussians whose center lies outside this range of camera z are culled.
        background: [C, 3] color behind the Gaussians; None is black.
        eps2d: variance in square pixels added to every footprint.
        backend: "auto" takes gsplat for CUDA tensors, numba for CPU tensors (float32; other types, and machines
            without numba, fall back to the reference), and the reference on other devices.

    Raises:
        RasterizationError: a wrong shape, dtype, device or range, or a backend that cannot run here.
    """
    scene = Scene(
        means, quats, scales, opacities, colors, viewmats, Ks,
        width, height, sh_degree, float(near), float(far), background, float(eps2d),
    )  # fmt: skip
    check_scene(scene)
    name = _choose(scene, backend)
    if name == "gsplat":
        from .gsplat_backend import rasterize_gsplat

        return rasterize_gsplat(scene)
    if name == "numba":
        from .numba_backend import rasterize_numba

        return rasterize_numba(scene)
    return rasterize_reference(scene)


def _choose(scene: Scene, backend: str) -> str:
    if backend not in BACKENDS:
        raise RasterizationError(f"rasterize: unknown backend {backend!r}. Known: {', '.join(BACKENDS)}.")
    if backend != "auto":
        return backend
    if scene.means.device.type == "cuda":
        return "gsplat"
    on_cpu_in_float32 = scene.means.device.type == "cpu" and scene.means.dtype == torch.float32
    return "numba" if on_cpu_in_float32 and _numba_backend_exists() else "reference"


def _numba_backend_exists() -> bool:
    return (
        importlib.util.find_spec("numba") is not None
        and importlib.util.find_spec(f"{__name__}.numba_backend") is not None
    )
