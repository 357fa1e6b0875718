"""What a good tiled rasterizer in pure torch costs: the yardstick for the numba backend.

Same image formation, same 8 x 8 tiles. All tiles of all views are composited together, a block of Gaussians at a time,
dropping tiles that are finished; autograd does the backward pass. Batched and vectorised throughout, nothing per Gaussian
in Python.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dreammapping.rasterization.reference import finish, project, view_colors
from dreammapping.rasterization.types import ALPHA_MAX, ALPHA_THRESHOLD, TRANSMITTANCE_STOP, Rasterization, Scene

TILE = 8
BLOCK = 32  # Gaussians composited at once; the tiles' lists are padded to a multiple of it


def rasterize_tiled_torch(scene: Scene) -> Rasterization:
    """Render ``scene`` on any device, differentiable, one pass for all views."""
    projection = project(scene)
    cameras, count = projection.depths.shape
    tiles_x, tiles_y = -(-scene.width // TILE), -(-scene.height // TILE)
    tile, gaussian = _pairs(projection, scene, tiles_x, tiles_y)
    lengths = torch.bincount(tile, minlength=cameras * tiles_x * tiles_y)
    starts = torch.cumsum(lengths, 0) - lengths

    # One row per (camera, Gaussian): mean, conic, opacity, color, depth, 1 (for alpha).
    ones = torch.ones(cameras, count, 1, dtype=scene.means.dtype, device=scene.means.device)
    table = torch.cat(
        [
            projection.means2d,
            projection.conics,
            scene.opacities.expand(cameras, -1)[..., None],
            view_colors(scene),
            projection.depths[..., None],
            ones,
        ],
        dim=-1,
    ).reshape(cameras * count, -1)
    image = _composite(table, gaussian, starts, lengths, _pixel_centers(cameras, tiles_x, tiles_y, table))
    image = image.reshape(cameras, tiles_y, tiles_x, TILE, TILE, 5).permute(0, 1, 3, 2, 4, 5)
    image = image.reshape(cameras, tiles_y * TILE, tiles_x * TILE, 5)[:, : scene.height, : scene.width]
    rgb, depth, alpha = image.split([3, 1, 1], dim=-1)
    return finish(scene, rgb, alpha, depth, **projection._asdict())


@torch.no_grad()
def _pairs(projection, scene: Scene, tiles_x: int, tiles_y: int) -> tuple[Tensor, Tensor]:
    """(tile, camera * N + Gaussian) of every overlap, by tile and then by depth."""
    cameras, count = projection.depths.shape
    limits = torch.tensor([tiles_x, tiles_y], device=scene.means.device)
    low = ((projection.means2d - projection.radii) / TILE).floor().long().clamp_min(0)
    high = ((projection.means2d + projection.radii) / TILE).ceil().long().minimum(limits)
    spans = (high - low).clamp_min(0) * (projection.radii > 0)
    flat = torch.argsort(projection.depths.reshape(-1), stable=True)
    spans, low = spans.reshape(-1, 2)[flat], low.reshape(-1, 2)[flat]
    overlaps = spans.prod(-1)
    source = torch.repeat_interleave(torch.arange(len(flat), device=flat.device), overlaps)
    within = torch.arange(len(source), device=flat.device) - (torch.cumsum(overlaps, 0) - overlaps)[source]
    width = spans[source, 0]
    x, y = low[source, 0] + within % width, low[source, 1] + torch.div(within, width, rounding_mode="floor")
    camera = torch.div(flat[source], count, rounding_mode="floor")
    tile = (camera * tiles_y + y) * tiles_x + x
    order = torch.argsort(tile, stable=True)
    return tile[order], flat[source][order]


def _pixel_centers(cameras: int, tiles_x: int, tiles_y: int, like: Tensor) -> Tensor:
    """[tiles, 64, 2]"""
    y, x = torch.meshgrid(
        torch.arange(tiles_y * TILE, device=like.device, dtype=like.dtype) + 0.5,
        torch.arange(tiles_x * TILE, device=like.device, dtype=like.dtype) + 0.5,
        indexing="ij",
    )
    grid = torch.stack([x, y], -1).reshape(tiles_y, TILE, tiles_x, TILE, 2).transpose(1, 2)
    return grid.reshape(1, tiles_y * tiles_x, TILE * TILE, 2).expand(cameras, -1, -1, -1).flatten(0, 1)


def _composite(table: Tensor, gaussian: Tensor, starts: Tensor, lengths: Tensor, pixels: Tensor) -> Tensor:
    """[tiles, 64, 5] color, depth, alpha."""
    tiles = len(lengths)
    image = table.new_zeros(tiles, TILE * TILE, 5)
    transmittance = table.new_ones(tiles, TILE * TILE)
    offsets = torch.arange(BLOCK, device=table.device)
    active = torch.nonzero(lengths > 0).squeeze(-1)
    done = 0
    while len(active):
        places = done + offsets
        valid = places < lengths[active, None]
        ids = gaussian[(starts[active, None] + places).clamp_max(len(gaussian) - 1)]
        rows = table[ids]  # [tiles, BLOCK, 11]
        dx, dy = (rows[:, None, :, :2] - pixels[active][:, :, None]).unbind(-1)  # [tiles, 64, BLOCK]
        a, b, c, opacity = (rows[:, None, :, k] for k in range(2, 6))
        sigma = 0.5 * (a * dx * dx + c * dy * dy) + b * dx * dy
        alpha = (opacity * torch.exp(-sigma)).clamp_max(ALPHA_MAX)
        alpha = torch.where(valid[:, None] & (sigma >= 0) & (alpha >= ALPHA_THRESHOLD), alpha, 0.0)
        carried = transmittance[active][..., None]
        after = carried * torch.cumprod(1 - alpha, -1)
        before = torch.cat([carried, after[..., :-1]], -1)
        going = after > TRANSMITTANCE_STOP
        weights = torch.where(going, alpha * before, 0.0)
        image = image.index_add(0, active, weights @ rows[..., 6:])
        left = torch.where(going[..., -1], after[..., -1], 0.0)
        transmittance = transmittance.index_copy(0, active, left)
        done += BLOCK
        active = active[(lengths[active] > done) & (left.detach() > 0).any(-1)]
    return image
