"""Argument checks of ``rasterize``: each mistake is named with what came and what is expected."""

from __future__ import annotations

import torch
from torch import Tensor

from .spherical_harmonics import MAX_SH_DEGREE
from .types import RasterizationError, Scene


def check_scene(scene: Scene) -> None:
    """Raise :class:`RasterizationError` for the first argument whose type, shape, dtype, device or range is wrong.

    Values are not looked at (that would cost a pass over the data): a Gaussian with a NaN or infinite position, size or
    opacity is culled like one behind the camera.
    """
    _check_tensors(scene)
    _check_shapes(scene)
    _check_numbers(scene)


def _tensors(scene: Scene) -> dict[str, Tensor]:
    names = ["means", "quats", "scales", "opacities", "colors", "viewmats", "Ks"]
    if scene.background is not None:
        names.append("background")
    return {name: getattr(scene, name) for name in names}


def _check_tensors(scene: Scene) -> None:
    for name, tensor in _tensors(scene).items():
        if not isinstance(tensor, Tensor):
            raise RasterizationError(f"rasterize: {name} must be a torch.Tensor, got {type(tensor).__name__}.")
    dtype, device = scene.means.dtype, scene.means.device
    if not dtype.is_floating_point:
        raise RasterizationError(f"rasterize: means must be a floating-point tensor, got {dtype}.")
    for name, tensor in _tensors(scene).items():
        if tensor.dtype != dtype:
            raise RasterizationError(
                f"rasterize: {name} is {tensor.dtype} but means is {dtype}. Convert one of them: .to(means.dtype)."
            )
        if tensor.device != device:
            raise RasterizationError(
                f"rasterize: {name} is on {tensor.device} but means is on {device}. Move it there: .to(means.device)."
            )


def _check_shapes(scene: Scene) -> None:
    if scene.means.ndim != 2 or scene.means.shape[1] != 3:
        raise RasterizationError(f"rasterize: means must have shape [N, 3], got {list(scene.means.shape)}.")
    if scene.viewmats.ndim != 3 or tuple(scene.viewmats.shape[1:]) != (4, 4) or scene.viewmats.shape[0] == 0:
        raise RasterizationError(
            f"rasterize: viewmats must have shape [C, 4, 4] with C >= 1, got {list(scene.viewmats.shape)}."
        )
    count, cameras = scene.means.shape[0], scene.viewmats.shape[0]
    expected = {"quats": (count, 4), "scales": (count, 3), "opacities": (count,), "Ks": (cameras, 3, 3)}
    if scene.background is not None:
        expected["background"] = (cameras, 3)
    if scene.sh_degree is None:
        expected["colors"] = (count, 3)
    for name, shape in expected.items():
        got = tuple(getattr(scene, name).shape)
        if got != shape:
            hint = " For spherical harmonics pass sh_degree." if name == "colors" and len(got) == 3 else ""
            raise RasterizationError(
                f"rasterize: {name} must have shape {list(shape)} for {count} Gaussians and {cameras} cameras, "
                f"got {list(got)}.{hint}"
            )
    if scene.sh_degree is not None:
        _check_sh(scene, count)


def _check_sh(scene: Scene, count: int) -> None:
    degree, shape = scene.sh_degree, tuple(scene.colors.shape)
    if not isinstance(degree, int) or not 0 <= degree <= MAX_SH_DEGREE:
        raise RasterizationError(f"rasterize: sh_degree must be an integer from 0 to {MAX_SH_DEGREE}, got {degree!r}.")
    needed = (degree + 1) ** 2
    if len(shape) != 3 or shape[0] != count or shape[2] != 3 or shape[1] < needed:
        raise RasterizationError(
            f"rasterize: with sh_degree {degree}, colors must have shape [{count}, K, 3] with K >= {needed}, "
            f"got {list(shape)}."
        )


def _check_numbers(scene: Scene) -> None:
    for name in ("width", "height"):
        value = getattr(scene, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise RasterizationError(f"rasterize: {name} must be a positive integer, got {value!r}.")
    if not 0.0 < scene.near < scene.far:
        raise RasterizationError(f"rasterize: need 0 < near < far, got near {scene.near} and far {scene.far}.")
    if not scene.eps2d >= 0.0:
        raise RasterizationError(f"rasterize: eps2d must not be negative, got {scene.eps2d}.")


def require_dtype(scene: Scene, dtype: torch.dtype, backend: str) -> None:
    """Raise unless the scene is of ``dtype``; the message says which backend takes others."""
    if scene.means.dtype != dtype:
        raise RasterizationError(
            f"rasterize: the {backend} backend computes in {dtype}, got {scene.means.dtype}. "
            f"Convert the inputs, or use backend='reference' (any floating-point type, slow)."
        )
