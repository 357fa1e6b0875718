"""Equidistant samples along rays, only where a grid of cells says that space is occupied."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

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
        return RaySamples(*(value[mask] for value in self))


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
    cells = torch.tensor(occupied.shape, device=box.device)
    scale = cells / (box[1] - box[0])
    origins, directions = (rays_o - box[0]) * scale, rays_d * scale  # in units of cells
    # Blocks of samples are tested before samples. No sample is further than 0.9 cells from its block's center, so a
    # block whose center's cell has no occupied neighbor holds nothing.
    pace = float(directions.abs().amax()) * step if len(directions) else 0.0
    block = max(1, min(_BLOCK, int(2 * 0.9 / pace) + 1)) if pace > 0 else 1
    grown = F.max_pool3d(occupied[None].float(), kernel_size=3, stride=1, padding=1)[0] > 0
    first, counts = _lattice(rays_o, rays_d, box, step, t_min, t_max)
    parts = []
    for start in range(0, max(len(rays_o), 1), _RAYS_AT_ONCE):
        rays = slice(start, start + _RAYS_AT_ONCE)
        ray, k = _occupied_steps(
            origins[rays], directions[rays], occupied, grown, step, t_min[rays], first[rays], counts[rays], block
        )
        parts.append((ray + start, k))
    ray, k = (torch.cat(values) for values in zip(*parts))
    begin = t_min[ray]
    samples = RaySamples(ray, begin + k * step, begin + (k + 1) * step)
    return samples.keep(begin + (k + 0.5) * step < t_max[ray])


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


def _occupied_steps(
    origins: Tensor,
    directions: Tensor,
    occupied: Tensor,
    grown: Tensor,
    step: float,
    t_min: Tensor,
    first: Tensor,
    counts: Tensor,
    block: int,
) -> tuple[Tensor, Tensor]:
    """Ray and number k of the intervals whose midpoint is in an occupied cell; coordinates in units of cells."""
    ray, number = expand_counts((counts + block - 1) // block)
    middle = t_min[ray] + (first[ray] + number * block + 0.5 * block) * step
    near = _lookup(grown, torch.addcmul(origins[ray], directions[ray], middle[:, None]), outside=None)
    ray, begin = ray[near], (number * block)[near]

    ray, begin = ray.repeat_interleave(block), begin.repeat_interleave(block)
    offset = begin + torch.arange(block, device=ray.device).repeat(len(ray) // block)
    ray, offset = (value[offset < counts[ray]] for value in (ray, offset))
    k = first[ray] + offset
    points = torch.addcmul(origins[ray], directions[ray], (t_min[ray] + (k + 0.5) * step)[:, None])
    inside = _lookup(occupied, points, outside=False)
    return ray[inside], k[inside]


def _lookup(grid: Tensor, points: Tensor, outside: bool | None) -> Tensor:
    """bool [N]: the grid's cell at points [N, 3] in units of cells; outside it `outside`, or the nearest cell if
    None."""
    index = points.floor().long()
    size = torch.tensor(grid.shape, device=grid.device)
    clamped = torch.minimum(index.clamp(min=0), size - 1)
    found = grid[tuple(clamped.unbind(-1))]
    return found if outside is None else torch.where((index == clamped).all(-1), found, outside)
