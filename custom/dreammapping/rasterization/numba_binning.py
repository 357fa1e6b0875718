"""numba kernels: sort the Gaussians of each view by depth and list them by pixel tile.

Terms: a *row* is one (Gaussian, tile) pair. Rows are numbered twice: along the tiles, each tile's rows nearest first
(the *position*), and along the Gaussians (the *row number*), so that what belongs to one Gaussian lies side by side.

The compositing kernels read a *splat* for each row: what they need of a Gaussian in one cache line, by depth.
"""

from __future__ import annotations

import math

import numpy as np

from . import types
from .numba_runtime import TILE, inlined, kernel

SPLAT = 16
"""Numbers of a splat, of which eleven are used."""
X, Y, XX, XY, YY, LEVEL, TOP, RED, GREEN, BLUE, DEPTH = range(11)
"""Where they are: at (X, Y) + (dx, dy), alpha is 2^(LEVEL - XX dx^2 - XY dx dy - YY dy^2). It is below the threshold
outside of Y - TOP .. Y + TOP."""

_F0, _F1, _HALF = np.float32(0), np.float32(1), np.float32(0.5)
_LOG2E, _2LN2 = np.float32(math.log2(math.e)), np.float32(2 * math.log(2))
_LOG2_THRESHOLD = np.float32(math.log2(types.ALPHA_THRESHOLD))
_REACH_MARGIN = np.float32(0.02)  # the tile test is done apart from the pixels; it errs on the side of keeping a tile
_REACHED, _MISSED = np.float32(0.51), np.float32(0.49)
_FAR = np.float32(2.0**30)


@kernel
def sort_by_depth(start, stop, radii, depth_bits, order, visible):
    """For cameras start..stop: order[c, :visible[c]] = visible Gaussians, nearest first, ties by index (radix sort).

    depth_bits are positive floats read as integers, which sort alike.
    """
    count = radii.shape[1]
    other = np.empty(count, np.int32)
    starts = np.empty(2048, np.int64)
    for c in range(start, stop):
        here = order[c]
        m = 0
        for n in range(count):
            if radii[c, n, 0] > 0 or radii[c, n, 1] > 0:
                here[m] = n
                m += 1
        visible[c] = m
        source, target = here, other
        for digit in range(3):
            shift = np.uint32(11 * digit)
            starts[:] = 0
            for i in range(m):
                starts[(depth_bits[c, source[i]] >> shift) & np.uint32(2047)] += 1
            total = 0
            for i in range(2048):
                total, starts[i] = total + starts[i], total
            for i in range(m):
                bucket = (depth_bits[c, source[i]] >> shift) & np.uint32(2047)
                target[starts[bucket]] = source[i]
                starts[bucket] += 1
            source, target = target, source
        for i in range(m):  # three passes: the result is in `other`
            here[i] = source[i]


@inlined
def _tile_span(center, radius, size):
    """Tiles [first, last) that the interval center +- radius meets within [0, size], or one more."""
    low, high = max(center - radius, _F0), min(center + radius, size - _HALF)
    return int(low) // TILE, int(max(high, _F0)) // TILE + 1


@kernel
def count_box_tiles(start, stop, order, visible, means2d, radii, width, height, boxes):
    """For cameras start..stop: the number of tiles in the Gaussians' bounding boxes, an upper limit of the rows."""
    for c in range(start, stop):
        total = 0
        for i in range(visible[c]):
            n = order[c, i]
            x0, x1 = _tile_span(means2d[c, n, 0], np.float32(radii[c, n, 0]), width)
            y0, y1 = _tile_span(means2d[c, n, 1], np.float32(radii[c, n, 1]), height)
            total += (x1 - x0) * (y1 - y0)
        boxes[c] = total


@inlined
def _half_height(a, b, d, reach):
    """Of the ellipse a dx^2 + 2 b dx dy + d dy^2 <= reach: its half height, dy at its rightmost point, the determinant.

    The determinant may cancel in float32, and the ellipse must be that of the pixels' float32 conic. Where it vanishes
    nothing is known and the half height is as good as infinite.
    """
    det = np.float32(float(a) * float(d) - float(b) * float(b))
    if not (det > _F0 and a > _F0):
        return _FAR, _F0, _F0
    top = np.float32(math.sqrt(reach * a / det))
    return top, -b * top / np.float32(math.sqrt(a * d)), det


@kernel
def list_tiles(
    start, stop, order, visible, means2d, conics, levels, colors, depths, radii, width, height, tiles_x,
    first, splats, tile, per_tile, per_gaussian,
):  # fmt: skip
    """For cameras start..stop: the splats, and the tiles each Gaussian touches, nearest first, from tile[first[c]] on.

    Of the bounding box the tiles whose pixel centers the Gaussian's ellipse misses are left out. Within a strip of tiles
    the ellipse's ends are at its rightmost and leftmost points, or, if those lie outside the strip, on its nearer border.
    levels [N] are log2 of the opacities. per_tile [C, tiles] and per_gaussian [C, N] are zero before.
    """
    count = order.shape[1]
    for c in range(start, stop):
        out = first[c]
        for i in range(visible[c]):
            n = order[c, i]
            mx, my = means2d[c, n, 0], means2d[c, n, 1]
            a, b, d = conics[c, n, 0], conics[c, n, 1], conics[c, n, 2]
            reach = _2LN2 * (levels[n] - _LOG2_THRESHOLD) + _REACH_MARGIN
            top, rightmost, det = _half_height(a, b, d, reach)
            splat = splats[c * count + i]
            splat[X], splat[Y], splat[LEVEL], splat[TOP], splat[DEPTH] = mx, my, levels[n], top, depths[c, n]
            splat[XX], splat[XY], splat[YY] = _HALF * _LOG2E * a, _LOG2E * b, _HALF * _LOG2E * d
            splat[RED], splat[GREEN], splat[BLUE] = colors[c, n, 0], colors[c, n, 1], colors[c, n, 2]
            x0, x1 = _tile_span(mx, np.float32(radii[c, n, 0]), width)
            y0, y1 = _tile_span(my, np.float32(radii[c, n, 1]), height)
            begin = out
            exact = x1 - x0 > 1 and det > _F0
            inverse = _F1 / a if exact else _F0
            for ty in range(y0, y1):
                t0, t1 = x0, x1
                if exact:
                    low = max(np.float32(ty * TILE) + _HALF - my, -top)
                    high = min(np.float32(ty * TILE + TILE) - _HALF - my, top)
                    if low > high:
                        continue
                    dy = min(max(rightmost, low), high)
                    right = mx + (np.float32(math.sqrt(max(reach * a - det * dy * dy, _F0))) - b * dy) * inverse
                    dy = min(max(-rightmost, low), high)
                    left = mx - (np.float32(math.sqrt(max(reach * a - det * dy * dy, _F0))) + b * dy) * inverse
                    # The pixel with center x + 0.5 is reached if left <= x + 0.5 <= right.
                    t0 = max(x0, int(max(left - _REACHED, _F0)) // TILE)
                    t1 = min(x1, int(max(right - _MISSED, -_F1) + np.float32(TILE)) // TILE)
                for tx in range(t0, t1):
                    tile[out] = ty * tiles_x + tx
                    per_tile[c, ty * tiles_x + tx] += 1
                    out += 1
            per_gaussian[c, n] = out - begin


@kernel
def fill_rows(start, stop, order, visible, first, tile, per_gaussian, row_start, cursor, rows):
    """For cameras start..stop: write each tile's splats and row numbers, nearest first (a counting sort).

    rows [positions, 2] is (splat, row number); cursor [C, tiles] is the first position of each tile and ends at its last;
    row_start [C, N] the first row of each Gaussian; first, tile and per_gaussian are as list_tiles left them.
    """
    count = order.shape[1]
    for c in range(start, stop):
        read = first[c]
        for i in range(visible[c]):
            n = order[c, i]
            number = row_start[c, n]
            for k in range(per_gaussian[c, n]):
                t = tile[read + k]
                position = cursor[c, t]
                rows[position, 0] = c * count + i
                rows[position, 1] = number + k
                cursor[c, t] = position + 1
            read += per_gaussian[c, n]
