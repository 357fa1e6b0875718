"""Looking up a grid encoding on a GPU by Triton kernels: 3 coordinates, float32 or float64.

The same three functions as in `hash_grid_torch`, which takes over where a direction is given: that is the second
derivative, which only normals need. A program does a block of points on one level, so that a level's table stays in the
cache. Sums over points are atomic, hence in no fixed order: results differ in the last digits from run to run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from threestudio.models import hash_grid_torch
from threestudio.models.hash_grid_layout import INTERPOLATIONS, PRIMES, GridLayout

# 32-bit arithmetic wraps, so the primes may be given as the signed numbers with the same bits.
_P1, _P2 = (tl.constexpr(prime - 2**32 if prime >= 2**31 else prime) for prime in PRIMES[1:3])
_SMOOTHSTEP = tl.constexpr(INTERPOLATIONS.index("Smoothstep"))
_NEAREST = tl.constexpr(INTERPOLATIONS.index("Nearest"))
_BLOCK = 128
# Successive points, mostly neighbors on a ray, whose additions to one entry a thread sums up before it does them: on
# coarse levels, where many share a cell. The default grid's levels without hashing have cells of 4 to 18 steps.
_RUN = 8


@triton.jit
def _axis(x, n, inside, scale, mode: tl.constexpr):
    """One coordinate's grid point below, the far one's share of the weight, and its derivative in x."""
    position = tl.load(x + n * 3, mask=inside, other=0.0) * scale + 0.5
    low = tl.floor(position)
    f = position - low
    if mode == _SMOOTHSTEP:
        far, slope = f * f * (3 - 2 * f), 6 * f * (1 - f) * scale
    elif mode == _NEAREST:
        far, slope = f * 0, f * 0
    else:
        far, slope = f, f * 0 + scale
    return low.to(tl.int32), far, slope


@triton.jit
def _entry(x, y, z, level, corner: tl.constexpr, hashed: tl.constexpr):
    """The entry of a cell's corner; always within the level's part of the table, whatever the point."""
    offset, size = tl.load(level), tl.load(level + 1)
    px, py, pz = x + (corner & 1), y + ((corner >> 1) & 1), z + (corner >> 2)
    if hashed:
        row = (px ^ (py * _P1) ^ (pz * _P2)) & (size - 1)
    else:
        row = (px + py * tl.load(level + 2) + pz * tl.load(level + 3)) % size
        row = tl.where(row < 0, row + size, row)
    return offset + row


@triton.jit
def _share(far, bit: tl.constexpr):
    if bit:
        return far
    else:
        return 1 - far


@triton.jit
def _gather(
    x, table, out, levels, scales, count, first,
    FEATURES: tl.constexpr, HASHED: tl.constexpr, MODE: tl.constexpr, CORNERS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    k = tl.program_id(1) + first
    inside, f = n < count, tl.arange(0, FEATURES)
    level, scale = levels + k * 4, tl.load(scales + k)
    x0, fx, _ = _axis(x, n, inside, scale, MODE)
    y0, fy, _ = _axis(x + 1, n, inside, scale, MODE)
    z0, fz, _ = _axis(x + 2, n, inside, scale, MODE)
    total = tl.zeros([BLOCK, FEATURES], dtype=out.dtype.element_ty)
    for corner in tl.static_range(CORNERS):
        row = _entry(x0, y0, z0, level, corner, HASHED)
        weight = _share(fx, corner & 1) * _share(fy, (corner >> 1) & 1) * _share(fz, corner >> 2)
        value = tl.load(table + row[:, None] * FEATURES + f[None, :], mask=inside[:, None], other=0.0)
        total += weight[:, None] * value
    column = (k * FEATURES + f).to(tl.int64) * count
    tl.store(out + column[None, :] + n[:, None], total, mask=inside[:, None])


@triton.jit
def _scatter(
    x, g, out, levels, scales, count, first, stride_n, stride_f,
    FEATURES: tl.constexpr, HASHED: tl.constexpr, MODE: tl.constexpr, CORNERS: tl.constexpr, BLOCK: tl.constexpr,
    RUN: tl.constexpr,
):  # fmt: skip
    begin = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)) * RUN
    k = tl.program_id(1) + first
    f = tl.arange(0, FEATURES)
    level, scale = levels + k * 4, tl.load(scales + k)
    column = (k * FEATURES + f).to(tl.int64) * stride_f
    for corner in tl.static_range(CORNERS):
        held = tl.zeros([BLOCK, FEATURES], dtype=out.dtype.element_ty)
        row = tl.full([BLOCK], -1, dtype=tl.int32)
        for step in range(RUN):
            n = begin + step
            inside = n < count
            x0, fx, _ = _axis(x, n, inside, scale, MODE)
            y0, fy, _ = _axis(x + 1, n, inside, scale, MODE)
            z0, fz, _ = _axis(x + 2, n, inside, scale, MODE)
            weight = _share(fx, corner & 1) * _share(fy, (corner >> 1) & 1) * _share(fz, corner >> 2)
            here = tl.where(inside, _entry(x0, y0, z0, level, corner, HASHED), row)
            places = g + n.to(tl.int64)[:, None] * stride_n + column[None, :]
            value = weight[:, None] * tl.load(places, mask=inside[:, None], other=0.0)
            changes = here != row
            done = changes & (row >= 0)
            tl.atomic_add(out + row[:, None] * FEATURES + f[None, :], held, mask=done[:, None], sem="relaxed")
            held = tl.where(changes[:, None], value, held + value)
            row = here
        tl.atomic_add(out + row[:, None] * FEATURES + f[None, :], held, mask=(row >= 0)[:, None], sem="relaxed")


@triton.jit
def _contract(
    x, table, g, out, levels, scales, count, first, last, stride_n, stride_f,
    FEATURES: tl.constexpr, HASHED: tl.constexpr, MODE: tl.constexpr, CORNERS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside, f = n < count, tl.arange(0, FEATURES)
    dx = tl.load(out + n * 3, mask=inside, other=0.0)
    dy = tl.load(out + n * 3 + 1, mask=inside, other=0.0)
    dz = tl.load(out + n * 3 + 2, mask=inside, other=0.0)
    for k in range(first, last):
        level, scale = levels + k * 4, tl.load(scales + k)
        x0, fx, sx = _axis(x, n, inside, scale, MODE)
        y0, fy, sy = _axis(x + 1, n, inside, scale, MODE)
        z0, fz, sz = _axis(x + 2, n, inside, scale, MODE)
        places = n.to(tl.int64)[:, None] * stride_n + (k * FEATURES + f).to(tl.int64)[None, :] * stride_f
        here = tl.load(g + places, mask=inside[:, None], other=0.0)
        for corner in tl.static_range(CORNERS):
            row = _entry(x0, y0, z0, level, corner, HASHED)
            value = tl.load(table + row[:, None] * FEATURES + f[None, :], mask=inside[:, None], other=0.0)
            inner = tl.sum(value * here, axis=1)
            wx, wy, wz = _share(fx, corner & 1), _share(fy, (corner >> 1) & 1), _share(fz, corner >> 2)
            dx += inner * sx * ((corner & 1) * 2 - 1) * wy * wz
            dy += inner * wx * sy * (((corner >> 1) & 1) * 2 - 1) * wz
            dz += inner * wx * wy * sz * ((corner >> 2) * 2 - 1)
    tl.store(out + n * 3, dx, mask=inside)
    tl.store(out + n * 3 + 1, dy, mask=inside)
    tl.store(out + n * 3 + 2, dz, mask=inside)


@dataclass(frozen=True)
class _LevelNumbers:
    """What the kernels read of the levels, on a device."""

    levels: Tensor
    """[L, 4] int32: offset, size, strides along y and z."""
    scales: Tensor
    """[L], of the points' type."""


_numbers_of: dict[tuple[int, torch.device, torch.dtype], tuple[GridLayout, _LevelNumbers]] = {}


def _numbers(layout: GridLayout, x: Tensor) -> _LevelNumbers:
    """Copied to the points' device once; a copy at each call would make the host wait."""
    key = (id(layout), x.device, x.dtype)
    if key not in _numbers_of:
        rows = [(level.offset, level.size, *level.strides[1:]) for level in layout.levels]
        scales = torch.tensor([level.scale for level in layout.levels], dtype=torch.float64)
        numbers = _LevelNumbers(torch.tensor(rows, dtype=torch.int32).to(x.device), scales.to(x.device, x.dtype))
        _numbers_of[key] = (layout, numbers)  # with the layout, so that its id is not given to another
    return _numbers_of[key][1]


def _groups(layout: GridLayout) -> Iterator[tuple[slice, dict[str, int]]]:
    """The levels without hashing, then those with it, and the kernels' constants."""
    mode = INTERPOLATIONS.index(layout.interpolation)
    for part in layout.groups(len(layout.levels)):
        yield (
            part,
            {
                "FEATURES": layout.features,
                "HASHED": layout.levels[part.start].hashed,
                "MODE": mode,
                "CORNERS": 1 if mode == _NEAREST.value else 8,
                "BLOCK": _BLOCK,
            },
        )


def fits(x: Tensor, layout: GridLayout) -> bool:
    """Whether the kernels are written for such points and such a grid, where Triton runs."""
    return (
        layout.dims == 3
        and layout.features in (1, 2, 4, 8)  # a block's sides are powers of two
        and x.dtype in (torch.float32, torch.float64)
        and max(layout.entries * layout.features, 3 * len(x)) < 2**31
    )


def gather(x: Tensor, v: Tensor | None, params: Tensor, layout: GridLayout) -> Tensor:
    """See `hash_grid_torch.gather`. The result [N, L * F] is the transpose of a contiguous tensor."""
    if v is not None:
        return hash_grid_torch.gather(x, v, params, layout)
    out = params.new_empty(len(layout.levels) * layout.features, len(x))
    points, table, numbers = x.contiguous(), params.contiguous(), _numbers(layout, x)
    for part, constants in _groups(layout) if len(x) else ():
        grid = (triton.cdiv(len(x), _BLOCK), part.stop - part.start)
        _gather[grid](points, table, out, numbers.levels, numbers.scales, len(x), part.start, **constants)
    return out.t()


def scatter(x: Tensor, v: Tensor | None, g: Tensor, layout: GridLayout) -> Tensor:
    """See `hash_grid_torch.scatter`."""
    if v is not None:
        return hash_grid_torch.scatter(x, v, g, layout)
    out = g.new_zeros(layout.entries * layout.features)
    points, numbers = x.contiguous(), _numbers(layout, x)
    for part, constants in _groups(layout) if len(x) else ():
        run = 1 if constants["HASHED"] else _RUN
        grid = (triton.cdiv(len(x), _BLOCK * run), part.stop - part.start)
        _scatter[grid](
            points, g, out, numbers.levels, numbers.scales, len(x), part.start, *g.stride(), **constants, RUN=run
        )
    return out


def contract(x: Tensor, v: Tensor | None, params: Tensor, g: Tensor, layout: GridLayout) -> Tensor:
    """See `hash_grid_torch.contract`."""
    if v is not None:
        return hash_grid_torch.contract(x, v, params, g, layout)
    out = torch.zeros_like(x, memory_format=torch.contiguous_format)
    points, table, numbers = x.contiguous(), params.contiguous(), _numbers(layout, x)
    for part, constants in _groups(layout) if len(x) else ():
        grid = (triton.cdiv(len(x), _BLOCK),)
        _contract[grid](
            points,
            table,
            g,
            out,
            numbers.levels,
            numbers.scales,
            len(x),
            part.start,
            part.stop,
            *g.stride(),
            **constants,
        )
    return out
