"""The steps of rays through a grid of cells on a GPU: a thread walks along one ray, once to count and once to write."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_RAYS_PER_BLOCK = 32  # one warp, as a block lasts as long as its longest ray


@triton.jit
def _cell(origin, direction, t, size):
    """A coordinate's cell along one axis, and whether there is such a cell."""
    place = tl.floor(origin + direction * t)
    return place.to(tl.int32), (place >= 0) & (place < size)


@triton.jit
def _walk(
    origins, directions, t_min, t_max, first, counts, occupied, sums, owners, numbers,
    step, rays, size_x, size_y, size_z, WRITE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Without WRITE, `sums` [R] gets each ray's number of samples; with it, it says how many there are up to it."""
    ray = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    exists = ray < rays
    ox = tl.load(origins + ray * 3, mask=exists, other=0.0)
    oy = tl.load(origins + ray * 3 + 1, mask=exists, other=0.0)
    oz = tl.load(origins + ray * 3 + 2, mask=exists, other=0.0)
    dx = tl.load(directions + ray * 3, mask=exists, other=0.0)
    dy = tl.load(directions + ray * 3 + 1, mask=exists, other=0.0)
    dz = tl.load(directions + ray * 3 + 2, mask=exists, other=0.0)
    near = tl.load(t_min + ray, mask=exists, other=0.0)
    far = tl.load(t_max + ray, mask=exists, other=0.0)
    begin = tl.load(first + ray, mask=exists, other=0)
    count = tl.load(counts + ray, mask=exists, other=0)
    if WRITE:
        # The sum up to the ray before.
        found = tl.load(sums + ray - 1, mask=exists & (ray > 0), other=0)
    else:
        found = tl.zeros([BLOCK], dtype=tl.int64)
    for j in range(tl.max(count, axis=0)):
        k = begin + j
        t = near + (k.to(near.dtype) + 0.5) * step
        x, in_x = _cell(ox, dx, t, size_x)
        y, in_y = _cell(oy, dy, t, size_y)
        z, in_z = _cell(oz, dz, t, size_z)
        inside = in_x & in_y & in_z & (j < count) & (t < far)
        full = tl.load(occupied + (x * size_y + y) * size_z + z, mask=inside, other=0) != 0
        if WRITE:
            tl.store(owners + found, ray.to(tl.int64), mask=full)
            tl.store(numbers + found, k, mask=full)
        found += full.to(tl.int64)
    if not WRITE:
        tl.store(sums + ray, found, mask=exists)


def occupied_steps(
    origins: Tensor, directions: Tensor, t_min: Tensor, t_max: Tensor, first: Tensor, counts: Tensor,
    occupied: Tensor, step: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Ray and number k [N] int64 of the intervals whose midpoint t_min + (k + 0.5) step is in an occupied cell.

    The host waits once, for N: memory for the most there could be would have to be worked on too, and costs more.

    Args:
        origins, directions: [R, 3], in units of cells from the grid's corner.
        t_min, t_max: [R]; midpoints lie below t_max.
        first, counts: [R] int64, the intervals to look at on each ray.
        occupied: bool [X, Y, Z].
    """
    rays = len(origins)
    sums = torch.empty_like(first)
    if rays == 0:
        return sums, sums.clone()
    grid, size = (triton.cdiv(rays, _RAYS_PER_BLOCK),), occupied.shape
    read = [
        value.contiguous() for value in (origins, directions, t_min, t_max, first, counts, occupied.view(torch.uint8))
    ]
    numbers = (step, rays, *size)
    _walk[grid](*read, sums, sums, sums, *numbers, WRITE=False, BLOCK=_RAYS_PER_BLOCK, num_warps=1)
    sums = sums.cumsum(0)
    total = int(sums[-1])
    owners, found = sums.new_empty(total), sums.new_empty(total)
    if total > 0:
        _walk[grid](*read, sums, owners, found, *numbers, WRITE=True, BLOCK=_RAYS_PER_BLOCK, num_warps=1)
    return owners, found
