"""Running sums along rays of different lengths, in one kernel: a thread walks along one ray."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

# Rays have different numbers of samples, and a block lasts as long as its longest: one warp is the smallest block.
_RAYS_PER_BLOCK = 32


@triton.jit
def _exclusive_ray_sum(values, starts, out, rays, REVERSE: tl.constexpr, BLOCK: tl.constexpr):
    ray = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    start = tl.load(starts + ray, mask=ray < rays, other=0)
    stop = tl.load(starts + ray + 1, mask=ray < rays, other=0)
    total = tl.zeros([BLOCK], dtype=values.dtype.element_ty)
    for step in range(tl.max(stop - start, axis=0)):
        place = stop - 1 - step if REVERSE else start + step
        inside = (place >= start) & (place < stop)
        value = tl.load(values + place, mask=inside, other=0.0)
        tl.store(out + place, total, mask=inside)
        total += value


def exclusive_ray_sum(values: Tensor, starts: Tensor, reverse: bool) -> Tensor:
    """For each sample the sum of `values` [N] over those before it (with `reverse`: after it) on its ray.

    Args:
        starts: [R + 1] int64, not decreasing; the samples of ray r are starts[r] to starts[r + 1] - 1.
    """
    values, out = values.contiguous(), torch.empty_like(values, memory_format=torch.contiguous_format)
    rays = len(starts) - 1
    if rays > 0 and len(values) > 0:
        grid = (triton.cdiv(rays, _RAYS_PER_BLOCK),)
        _exclusive_ray_sum[grid](values, starts, out, rays, REVERSE=reverse, BLOCK=_RAYS_PER_BLOCK, num_warps=1)
    return out
