"""Equidistant samples along rays, only where a grid of cells says that space is occupied."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from threestudio.utils.triton_support import triton_runs

_RAYS_AT_ONCE = 2**16  # bounds the memory of the intermediate steps, not the number of samples
_BLOCK = 8


class RaySamples(NamedTuple):
    """Packed intervals on rays, see `threestudio.utils.volume_rendering`."""

    ray_indices: Tensor
    """[N] int64, not decreasing."""
    t_starts: Tensor
    """[N], in units of the ray's direction; increasing on each ray."""
    t_ends: Tensor
    """[N]"""

    def keep(self, mask: Tensor) -> RaySamples:
        """The samples where `mask` [N] holds."""
        index = mask.nonzero()[:, 0]  # once: it makes the host wait for a GPU
        return RaySamples(*(value.index_select(0, index) for value in self))


def intersect_box(rays_o: Tensor, rays_d: Tensor, box: Tensor) -> tuple[Tensor, Tensor]:
    """Where rays enter and leave an axis-aligned box.

    Args:
        rays_o, rays_d: [R, 3].  box: [2, 3].

    Returns:
        t_enter [R] and t_exit [R], negative behind the origin; t_enter > t_exit where the ray's line misses the box.
    """
    # A component of zero would give 0 / 0 for origins in a face of the box.
    tiny = torch.full_like(rays_d, 1e-12).copysign(rays_d)
    slopes = torch.where(rays_d.abs() < 1e-12, tiny, rays_d)
    to_low, to_high = (box[0] - rays_o) / slopes, (box[1] - rays_o) / slopes
    return torch.minimum(to_low, to_high).amax(-1), torch.maximum(to_low, to_high).amin(-1)


def expand_counts(counts: Tensor) -> tuple[Tensor, Tensor]:
    """For counts [n] int64: the owner of each of the sum(counts) elements, and its number within its owner's."""
    owner = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
    starts = counts.cumsum(0) - counts
    return owner, torch.arange(len(owner), device=counts.device) - starts[owner]


@torch.no_grad()
def march(
    rays_o: Tensor, rays_d: Tensor, occupied: Tensor, box: Tensor, step: float, t_min: Tensor, t_max: Tensor
) -> RaySamples:
    """The intervals [t_min + k step, t_min + (k + 1) step] whose midpoints lie in an occupied cell.

    Args:
        rays_o, rays_d: [R, 3]; directions may have any length, t counts in it.
        occupied: bool [X, Y, Z], cells of equal size that fill the box.
        box: [2, 3].
        step: length of an interval.
        t_min, t_max: [R], the part of the ray that is sampled; midpoints lie below t_max.
    """
    scale = torch.tensor(occupied.shape, device=box.device) / (box[1] - box[0])
    directions = rays_d * scale
    first, counts = _lattice(rays_o, rays_d, box, step, t_min, t_max)
    rays = _GridRays((rays_o - box[0]) * scale, directions, t_min, t_max, first, counts)
    if triton_runs(rays_o.device):
        from threestudio.models.estimators.marching_triton import occupied_steps  # only there is Triton sure to be

        ray, k = occupied_steps(*rays, occupied, step)
    else:
        ray, k = _blockwise_steps(rays, occupied, step)
    begin = t_min.index_select(0, ray)
    return RaySamples(ray, begin + k * step, begin + (k + 1) * step)


def _blockwise_steps(rays: _GridRays, occupied: Tensor, step: float) -> tuple[Tensor, Tensor]:
    """As `_occupied_steps`, for any number of rays. Blocks of samples are tested before samples."""
    # No sample is further than 0.9 cells from its block's center, so a block whose center's cell has no occupied
    # neighbor holds nothing.
    pace = float(rays.directions.abs().amax()) * step if len(rays.directions) else 0.0
    block = max(1, min(_BLOCK, int(2 * 0.9 / pace) + 1)) if pace > 0 else 1
    # A border of empty cells stands for everything outside; the grown grid needs one to grow into.
    bordered = F.pad(occupied, (1,) * 6)
    grown = F.max_pool3d(bordered[None].float(), kernel_size=3, stride=1, padding=1)[0] > 0
    parts = []
    for start in range(0, max(len(rays.origins), 1), _RAYS_AT_ONCE):
        chunk = _GridRays(*(value[start : start + _RAYS_AT_ONCE] for value in rays))
        ray, k = _occupied_steps(chunk, bordered, grown, step, block)
        parts.append((ray + start, k))
    ray, k = (torch.cat(values) for values in zip(*parts))
    return ray, k


class _GridRays(NamedTuple):
    """Rays in units of cells, and which of their intervals to look at."""

    origins: Tensor  # [R, 3]
    directions: Tensor  # [R, 3]
    t_min: Tensor  # [R]
    t_max: Tensor  # [R]
    first: Tensor  # [R] int64, number of the first interval
    counts: Tensor  # [R] int64


def _lattice(
    rays_o: Tensor, rays_d: Tensor, box: Tensor, step: float, t_min: Tensor, t_max: Tensor
) -> tuple[Tensor, Tensor]:
    """First interval and number of intervals [R] that may have their midpoint in the box; rounded outwards."""
    enter, leave = intersect_box(rays_o, rays_d, box)
    enter, leave = torch.maximum(enter, t_min), torch.minimum(leave, t_max)
    hits = (enter <= leave) & (rays_d.norm(dim=-1) > 1e-3)  # a ray without direction would have endless steps
    enter, leave = torch.where(hits, enter, t_min), torch.where(hits, leave, t_min)
    first = ((enter - t_min) / step - 0.5).floor().clamp(min=0).long()
    last = ((leave - t_min) / step - 0.5).ceil().long()
    return first, torch.where(hits, (last - first + 1).clamp(min=0), 0)


def _occupied_steps(rays: _GridRays, bordered: Tensor, grown: Tensor, step: float, block: int) -> tuple[Tensor, Tensor]:
    """Ray and number k of the intervals whose midpoint is in an occupied cell."""
    ray, number = expand_counts((rays.counts + block - 1) // block)
    begin = number * block
    chosen = _GridRays(*(value.index_select(0, ray) for value in rays))
    middle = chosen.t_min + (chosen.first + begin + 0.5 * block) * step
    near = _lookup(grown, chosen.origins, chosen.directions, middle[:, None])[:, 0].nonzero()[:, 0]

    ray, begin = ray.index_select(0, near), begin.index_select(0, near)[:, None]
    chosen = _GridRays(*(value.index_select(0, near) for value in chosen))
    offset = begin + torch.arange(block, device=ray.device)  # [blocks, block]
    k = chosen.first[:, None] + offset
    t = chosen.t_min[:, None] + (k + 0.5) * step
    inside = _lookup(bordered, chosen.origins, chosen.directions, t)
    inside &= (offset < chosen.counts[:, None]) & (t < chosen.t_max[:, None])
    row, column = inside.nonzero().unbind(-1)
    return ray.index_select(0, row), chosen.first.index_select(0, row) + begin[:, 0].index_select(0, row) + column


def _lookup(bordered: Tensor, origins: Tensor, directions: Tensor, t: Tensor) -> Tensor:
    """The grid [X + 2, Y + 2, Z + 2] with a border of one cell, at distances t [N, S] on rays [N, 3] in cells: bool."""
    flat = torch.zeros_like(t)  # float32 holds the number of a cell exactly up to 2^24
    for axis, size in enumerate(bordered.shape):
        cell = torch.addcmul(origins[:, axis, None], directions[:, axis, None], t).floor_().clamp_(-1, size - 2)
        flat = flat.mul_(size).add_(cell).add_(1)
    return bordered.flatten().take(flat.long())
