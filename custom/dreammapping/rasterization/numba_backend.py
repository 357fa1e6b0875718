"""The CPU backend: two autograd functions around the numba kernels.

Projection and compositing are apart so that ``means2d`` stays in the graph: densification reads its gradient.
Differences from the reference: float32 only, no gradient for the cameras, and no second derivatives.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import numba_binning as binning
from . import numba_projection as projection
from . import numba_projection_gradients as projection_gradients
from . import numba_tiles as tiles
from .checks import require_dtype
from .numba_runtime import TILE, parallel_for
from .reference import finish
from .types import ALPHA_THRESHOLD, Rasterization, RasterizationError, Scene

_GAUSSIAN_GRAIN = 512  # ranges shorter than this cost more to hand over than to compute
_TILE_GRAIN = 16


def rasterize_numba(scene: Scene) -> Rasterization:
    """Render on the CPU with ``torch.get_num_threads()`` threads; bitwise the same for any number of them.

    Raises:
        RasterizationError: another dtype than float32, tensors not on the CPU, or cameras that require gradients.
    """
    require_dtype(scene, torch.float32, "numba")
    if scene.means.device.type != "cpu":
        raise RasterizationError(
            f"rasterize: the numba backend runs on the CPU, got tensors on {scene.means.device}. Use backend='auto'."
        )
    if scene.viewmats.requires_grad or scene.Ks.requires_grad:
        raise RasterizationError(
            "rasterize: the numba backend has no gradients for viewmats and Ks. Detach them, or use "
            "backend='reference' (or 'gsplat' on CUDA)."
        )
    means2d, depths, conics, colors, radii = _Project.apply(
        scene.means, scene.quats, scene.scales, scene.colors, scene.opacities, scene
    )
    rgb, alpha, depth = _Composite.apply(
        means2d, conics, colors, depths, scene.opacities, radii, scene.width, scene.height
    )
    return finish(scene, rgb, alpha, depth, means2d=means2d, radii=radii, depths=depths, conics=conics)


def _arrays(*tensors: Tensor) -> list[np.ndarray]:
    return [tensor.detach().contiguous().numpy() for tensor in tensors]


def _as_coefficients(colors: Tensor) -> Tensor:
    """[N, K, 3]; plain colors become K = 1."""
    return colors if colors.ndim == 3 else colors[:, None]


def _empty(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32)


def _given(gradient: Tensor | None, *shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32) if gradient is None else gradient.contiguous().numpy()


class _Project(torch.autograd.Function):
    """(means, quats, scales, colors or SH, opacities) -> means2d, depths, conics, colors, radii, each [C, N, ...].

    Opacities only decide about culling, which has no gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, means: Tensor, quats: Tensor, scales: Tensor, colors: Tensor, opacities: Tensor, scene: Scene
    ) -> tuple[Tensor, ...]:
        count, cameras = means.shape[0], scene.viewmats.shape[0]
        viewmats, Ks = _arrays(scene.viewmats, scene.Ks)
        positions = np.ascontiguousarray(-np.einsum("cji,cj->ci", viewmats[:, :3, :3], viewmats[:, :3, 3]))
        degree = -1 if scene.sh_degree is None else scene.sh_degree
        sh = _as_coefficients(colors)
        inputs = _arrays(means, quats, scales, opacities, sh)
        means2d, depths = _empty(cameras, count, 2), _empty(cameras, count)
        conics, view_colors = _empty(cameras, count, 3), _empty(cameras, count, 3)
        radii = torch.empty(cameras, count, 2, dtype=torch.int32)
        limits = projection.slope_limits(Ks, scene.width, scene.height)
        parallel_for(
            projection.project_gaussians, count, *inputs, degree, viewmats, Ks, positions, limits,
            *map(np.float32, (scene.width, scene.height, scene.near, scene.far, scene.eps2d)),
            *_arrays(means2d, depths, conics, radii, view_colors), grain=_GAUSSIAN_GRAIN,
        )  # fmt: skip
        ctx.save_for_backward(means, quats, scales, colors, conics, radii, view_colors)
        ctx.cameras = (degree, viewmats, Ks, positions, limits)
        ctx.mark_non_differentiable(radii)
        ctx.set_materialize_grads(False)
        return means2d, depths, conics, view_colors, radii

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, v_means2d: Tensor | None, v_depths: Tensor | None, v_conics: Tensor | None,
        v_colors: Tensor | None, _v_radii: None,
    ) -> tuple[Tensor | None, ...]:  # fmt: skip
        means, quats, scales, colors, conics, radii, view_colors = ctx.saved_tensors
        cameras, count = radii.shape[:2]
        sh = _as_coefficients(colors)
        outputs = [torch.empty_like(t, memory_format=torch.contiguous_format) for t in (means, quats, scales, sh)]
        parallel_for(
            projection_gradients.projection_gradients, count, *_arrays(means, quats, scales, sh), *ctx.cameras,
            *_arrays(conics, radii, view_colors), _given(v_means2d, cameras, count, 2),
            _given(v_depths, cameras, count), _given(v_conics, cameras, count, 3), _given(v_colors, cameras, count, 3),
            *_arrays(*outputs), grain=_GAUSSIAN_GRAIN,
        )  # fmt: skip
        v_means, v_quats, v_scales, v_sh = outputs
        return v_means, v_quats, v_scales, v_sh.reshape(colors.shape), None, None


class _Rows(NamedTuple):
    """The (Gaussian, tile) pairs of a batch of views; see numba_binning."""

    tile_start: np.ndarray  # [C * tiles + 1] int64, first position of each tile
    pairs: np.ndarray  # [rows, 2] int32, splat and row number by position
    splats: np.ndarray  # [C * N, SPLAT] float32, nearest first in each view
    row_start: np.ndarray  # [C, N] int64
    row_count: np.ndarray  # [C, N] int64


def _bin(
    means2d: Tensor, conics: Tensor, colors: Tensor, depths: Tensor, opacities: Tensor, radii: Tensor, size: tuple
) -> _Rows:
    cameras, count = radii.shape[:2]
    centers, shapes, shades, distances, alphas, boxes = _arrays(means2d, conics, colors, depths, opacities, radii)
    order, visible = np.empty((cameras, count), np.int32), np.zeros(cameras, np.int64)
    parallel_for(binning.sort_by_depth, cameras, boxes, distances.view(np.uint32), order, visible)

    width, height = size
    limits = np.float32(width), np.float32(height)
    box_tiles = np.zeros(cameras, np.int64)
    parallel_for(binning.count_box_tiles, cameras, order, visible, centers, boxes, *limits, box_tiles)

    tiles_x, tiles_y = -(-width // TILE), -(-height // TILE)
    first, tile = np.cumsum(box_tiles) - box_tiles, np.empty(int(box_tiles.sum()), np.int32)
    splats = np.empty((cameras * count, binning.SPLAT), np.float32)
    per_tile, row_count = np.zeros((cameras, tiles_x * tiles_y), np.int64), np.zeros((cameras, count), np.int64)
    levels = np.log2(np.maximum(alphas, np.float32(ALPHA_THRESHOLD)))
    parallel_for(
        binning.list_tiles, cameras, order, visible, centers, shapes, levels, shades, distances, boxes, *limits,
        tiles_x, first, splats, tile, per_tile, row_count,
    )  # fmt: skip

    tile_start = np.zeros(per_tile.size + 1, np.int64)
    np.cumsum(per_tile.reshape(-1), out=tile_start[1:])
    row_start = (np.cumsum(row_count.reshape(-1)) - row_count.reshape(-1)).reshape(cameras, count)
    pairs = np.empty((int(tile_start[-1]), 2), np.int32)
    cursor = tile_start[:-1].reshape(per_tile.shape).copy()
    parallel_for(binning.fill_rows, cameras, order, visible, first, tile, row_count, row_start, cursor, pairs)
    return _Rows(tile_start, pairs, splats, row_start, row_count)


class _Composite(torch.autograd.Function):
    """(means2d, conics, colors, depths, opacities) -> rgb [C, H, W, 3], alpha and accumulated depth [C, H, W, 1]."""

    @staticmethod
    def forward(
        ctx: Any, means2d: Tensor, conics: Tensor, colors: Tensor, depths: Tensor, opacities: Tensor, radii: Tensor,
        width: int, height: int,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        rows = _bin(means2d, conics, colors, depths, opacities, radii, (width, height))
        cameras = radii.shape[0]
        rgb = torch.empty(cameras, height, width, 3)
        alpha, depth = torch.empty(cameras, height, width, 1), torch.empty(cameras, height, width, 1)
        tile_count = len(rows.tile_start) - 1
        processed = np.empty(tile_count, np.int64)
        parallel_for(
            tiles.composite_tiles, tile_count, rows.tile_start, rows.pairs, rows.splats,
            *_arrays(rgb, alpha.squeeze(-1), depth.squeeze(-1)), processed, grain=_TILE_GRAIN,
        )  # fmt: skip
        ctx.save_for_backward(means2d, conics, opacities, colors, depths, rgb, alpha, depth)
        ctx.rows, ctx.processed = rows, processed
        ctx.set_materialize_grads(False)
        return rgb, alpha, depth

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, v_rgb: Tensor | None, v_alpha: Tensor | None, v_depth: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        means2d, conics, opacities, colors, depths, rgb, alpha, depth = ctx.saved_tensors
        rows: _Rows = ctx.rows
        image = tuple(rgb.shape[:3])
        sums = np.empty(len(rows.pairs) * tiles.SUMS, np.float32)
        parallel_for(
            tiles.tile_gradients, len(ctx.processed), rows.tile_start, ctx.processed, rows.pairs, rows.splats,
            *_arrays(rgb, alpha.squeeze(-1), depth.squeeze(-1)), _given(v_rgb, *image, 3),
            _given(v_alpha, *image, 1).reshape(image), _given(v_depth, *image, 1).reshape(image), sums,
            grain=_TILE_GRAIN,
        )  # fmt: skip
        outputs = [torch.empty_like(t) for t in (means2d, conics, opacities, colors, depths)]
        parallel_for(
            tiles.sum_rows, opacities.shape[0], rows.row_start, rows.row_count, sums,
            *_arrays(opacities, conics, *outputs), grain=_GAUSSIAN_GRAIN,
        )  # fmt: skip
        v_means2d, v_conics, v_opacities, v_colors, v_depths = outputs
        return v_means2d, v_conics, v_colors, v_depths, v_opacities, None, None, None
