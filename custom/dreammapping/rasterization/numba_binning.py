"""numba kernels: sort the Gaussians of each view by depth and list them by pixel tile.

Terms: a *row* is one (Gaussian, tile) pair. Rows are numbered twice: along the tiles, each tile's rows nearest first (the
*position*), and along the Gaussians (the *row number*), so that what belongs to one Gaussian lies side by side.
"""

from __future__ import annotations

import math

import numpy as np

from .numba_runtime import TILE, kernel

_F0 = np.float32(0)


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


@kernel
def _tile_span(center, radius, size):
    """Tiles [first, last) that the interval center +- radius meets within [0, size]."""
    low, high = max(center - radius, _F0), min(center + radius, size)
    return int(low) // TILE, -(-int(math.ceil(high)) // TILE)


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


@kernel
def list_tiles(
    start, stop, order, visible, means2d, conics, reaches, radii, width, height, tiles_x, first, tile, per_tile,
    per_gaussian,
):  # fmt: skip
    """For cameras start..stop: the tiles each Gaussian touches, nearest Gaussian first, from tile[first[c]] on.

    Of the bounding box the tiles whose pixel centers the ellipse a dx^2 + 2 b dx dy + c dy^2 <= reach misses are left
    out; reaches [N] is 2 log(opacity / threshold) plus a margin. Within a strip of tiles the ellipse's ends are at its rightmost and leftmost points, or, if those lie outside
    the strip, on its nearer border. per_tile [C, tiles] is zero before; per_gaussian [C, N] likewise.
    """
    for c in range(start, stop):
        out = first[c]
        for i in range(visible[c]):
            n = order[c, i]
            mx, my = means2d[c, n, 0], means2d[c, n, 1]
            x0, x1 = _tile_span(mx, np.float32(radii[c, n, 0]), width)
            y0, y1 = _tile_span(my, np.float32(radii[c, n, 1]), height)
            begin = out
            # The conic's determinant may cancel in float32; the ellipse must be that of the pixels' float32 conic.
            ca, cb, cc = float(conics[c, n, 0]), float(conics[c, n, 1]), float(conics[c, n, 2])
            det = ca * cc - cb * cb
            exact = x1 - x0 > 1 and det > 0.0 and ca > 0.0
            if exact:
                reach = reaches[n]
                inverse = 1.0 / ca
                top = math.sqrt(reach * ca / det)  # half height of the ellipse
                rightmost = -cb * top / math.sqrt(ca * cc)  # dy of the rightmost point
            for ty in range(y0, y1):
                t0, t1 = x0, x1
                if exact:
                    low = max(ty * TILE + 0.5 - my, -top)
                    high = min(ty * TILE + TILE - 0.5 - my, top)
                    if low > high:
                        continue
                    dy = min(max(rightmost, low), high)
                    right = mx + (math.sqrt(max(reach * ca - det * dy * dy, 0.0)) - cb * dy) * inverse
                    dy = min(max(-rightmost, low), high)
                    left = mx - (math.sqrt(max(reach * ca - det * dy * dy, 0.0)) + cb * dy) * inverse
                    # The pixel with center x + 0.5 is reached if left <= x + 0.5 <= right.
                    t0 = max(x0, int(max(left - 0.51, 0.0)) // TILE)
                    t1 = min(x1, int(max(right - 0.49, -1.0) + TILE) // TILE)
                for tx in range(t0, t1):
                    tile[out] = ty * tiles_x + tx
                    per_tile[c, ty * tiles_x + tx] += 1
                    out += 1
            per_gaussian[c, n] = out - begin


@kernel
def fill_rows(start, stop, order, visible, first, tile, per_gaussian, row_start, cursor, gaussian, row):
    """For cameras start..stop: write each tile's Gaussians and their row numbers, nearest first (a counting sort).

    cursor [C, tiles] is the first position of each tile and ends at its last; row_start [C, N] the first row of each
    Gaussian; first, tile and per_gaussian are as list_tiles left them.
    """
    for c in range(start, stop):
        read = first[c]
        for i in range(visible[c]):
            n = order[c, i]
            number = row_start[c, n]
            for k in range(per_gaussian[c, n]):
                t = tile[read + k]
                position = cursor[c, t]
                gaussian[position] = n
                row[position] = number + k
                cursor[c, t] = position + 1
            read += per_gaussian[c, n]
