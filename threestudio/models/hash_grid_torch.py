"""Looking up a grid encoding in plain PyTorch: any device, any floating type, up to 4 coordinates.

`gather`, `scatter` and `contract` are all that a lookup, its gradients and the gradients of those need. With a
direction `v` [N, D], each uses in place of the interpolation weights their derivative along `v`, per point.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import torch
from torch import Tensor

from threestudio.models.hash_grid_layout import PRIMES, GridLayout

# Numbers of one temporary: levels are taken together, for few and large kernels on a GPU, as far as this allows.
_LARGEST_TEMPORARY = 2**24


def gather(x: Tensor, v: Tensor | None, params: Tensor, layout: GridLayout) -> Tensor:
    """Interpolated features [N, L * F] at the points `x` [N, D]: sum over corners of weight times entry."""
    out = params.new_zeros(len(x), len(layout.levels), layout.features)
    table = params.view(-1, layout.features)
    for part, cells in _parts(x, layout):
        for corner in cells.corners:
            out[:, part].addcmul_(cells.weight(corner, v)[..., None], table[cells.entry(corner)])
    return out.flatten(1)


def scatter(x: Tensor, v: Tensor | None, g: Tensor, layout: GridLayout) -> Tensor:
    """The transpose of `gather`: `g` [N, L * F] spread over the entries, flat as the parameters are."""
    out = g.new_zeros(layout.entries, layout.features)
    g = g.reshape(len(x), -1, layout.features)
    for part, cells in _parts(x, layout):
        for corner in cells.corners:
            values = cells.weight(corner, v)[..., None] * g[:, part]
            out.index_add_(0, cells.entry(corner).reshape(-1), values.reshape(-1, layout.features))
    return out.reshape(-1)


def contract(x: Tensor, v: Tensor | None, params: Tensor, g: Tensor, layout: GridLayout) -> Tensor:
    """Gradient [N, D] of the inner product of `gather` and `g` with respect to `x`."""
    out = torch.zeros_like(x)
    table = params.view(-1, layout.features)
    g = g.reshape(len(x), -1, layout.features)
    for part, cells in _parts(x, layout):
        for corner in cells.corners:
            inner = (table[cells.entry(corner)] * g[:, part]).sum(-1)
            for axis in range(layout.dims):
                out[:, axis] += (cells.slope(corner, axis, v) * inner).sum(-1)
    return out


def _parts(x: Tensor, layout: GridLayout) -> Iterator[tuple[slice, _Cells]]:
    for part in layout.groups(max(1, _LARGEST_TEMPORARY // max(1, len(x)))):
        yield part, _Cells(x, layout, part)


class _Cells:
    """Where the points lie in the grids of some levels. A corner is a tuple of D bits, 1 for the far side."""

    def __init__(self, x: Tensor, layout: GridLayout, part: slice) -> None:
        tensors = layout.tensors(x.device)
        self.hashed, self.dims = layout.levels[part.start].hashed, layout.dims
        self.strides, self.sizes, self.offsets = tensors.strides[part], tensors.sizes[part], tensors.offsets[part]
        scale = tensors.scales[part].to(x.dtype)
        position = x.t()[..., None] * scale + 0.5  # [D, N, L]
        low = position.floor()
        self.low = low.long()
        self.factors = _factors(position - low, scale, layout.interpolation)
        nearest = layout.interpolation == "Nearest"
        self.corners = [(0,) * self.dims] if nearest else list(product((0, 1), repeat=self.dims))

    def entry(self, corner: tuple[int, ...]) -> Tensor:
        """Entry numbers [N, L]."""
        index: Tensor | int = 0
        for axis, bit in enumerate(corner):
            point = self.low[axis] + bit
            # tiny-cuda-nn multiplies modulo 2^32; the low bits that count are the same.
            index = index ^ (point * PRIMES[axis]) if self.hashed else index + point * self.strides[:, axis]
        # A hashed level's size is a power of two.
        return self.offsets + (index & (self.sizes - 1) if self.hashed else index % self.sizes)

    def weight(self, corner: tuple[int, ...], v: Tensor | None) -> Tensor:
        """Interpolation weights [N, L], or their derivatives along `v`."""
        if v is None:
            return self._product(corner, ())
        return sum(v[:, axis, None] * self._product(corner, (axis,)) for axis in range(self.dims))

    def slope(self, corner: tuple[int, ...], axis: int, v: Tensor | None) -> Tensor:
        """Derivatives of `weight` with respect to one coordinate, [N, L]."""
        if v is None:
            return self._product(corner, (axis,))
        return sum(v[:, other, None] * self._product(corner, (axis, other)) for other in range(self.dims))

    def _product(self, corner: tuple[int, ...], derivatives: tuple[int, ...]) -> Tensor:
        """The weight, differentiated once along each axis named in `derivatives`."""
        result = self.factors[derivatives.count(0)][corner[0]][0]
        for axis in range(1, self.dims):
            result = result * self.factors[derivatives.count(axis)][corner[axis]][axis]
        return result


def _factors(f: Tensor, scale: Tensor, interpolation: str) -> list[tuple[Tensor, Tensor]]:
    """One axis' share of a weight at the near and at the far corner, and its first and second derivative in x."""
    if interpolation == "Smoothstep":
        far, first, second = f * f * (3 - 2 * f), 6 * f * (1 - f) * scale, (6 - 12 * f) * scale**2
    elif interpolation == "Linear":
        far, first, second = f, scale.expand_as(f), torch.zeros_like(f)
    else:
        far = first = second = torch.zeros_like(f)
    return [(1 - far, far), (-first, first), (-second, second)]
