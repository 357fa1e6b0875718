"""numba kernels: composite the tiles that numba_binning has filled, and the gradients of that.

Every row (Gaussian in a tile) has its own gradients, and the rows of a Gaussian lie side by side and are added in a
fixed order. Nothing is added by two threads, so results do not depend on their number.

A vector holds BLOCK_ROWS rows of a tile's pixels, so a pixel's column depends on its lane alone. Pixels are
not branched on: a finished one has transmittance zero. Blocks that the Gaussian does not reach are skipped.
"""

from __future__ import annotations

import math

import numpy as np

from . import types
from .numba_binning import BLUE, DEPTH, GREEN, LEVEL, RED, TOP, XX, XY, YY, X, Y
from .numba_runtime import TILE, inlined, kernel
from .numba_vectors import LANES, any_lane, exp2, load, repeat, select, store, totals

PIXELS = TILE * TILE
BLOCK_ROWS = LANES // TILE
BLOCKS = TILE // BLOCK_ROWS

SUMS = LANES
"""Numbers kept per row, the first ten used: with s the gradient of a pixel's exponent and (dx, dy) its distance, the
sums of s, s dx, s dy, s dx^2, s dx dy, s dy^2, then the gradients of red, green, blue and depth."""

_EXIT_EVERY = 8  # Gaussians between two looks whether the whole tile is finished

_F0, _F1, _HALF = np.float32(0), np.float32(1), np.float32(0.5)
_LOG2_THRESHOLD = np.float32(math.log2(types.ALPHA_THRESHOLD))
_ALPHA_MAX = np.float32(types.ALPHA_MAX)
_ALMOST_ONE = np.float32(0.999)
_STOP = np.float32(types.TRANSMITTANCE_STOP)

# Offsets of the per-pixel state within one flat array.
_T, _RED, _GREEN, _BLUE, _DEPTH, _ALPHA, _REST, _STATE = (k * PIXELS for k in range(8))
_LEFT = _REST  # in the forward pass: the transmittance, also of a finished pixel


@inlined
def _pixel_offsets():
    """Column and row of each lane's pixel center within a block."""
    column, row = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    for lane in range(LANES):
        column[lane], row[lane] = np.float32(lane % TILE) + _HALF, np.float32(lane // TILE) + _HALF
    return load(column, 0), load(row, 0)


@inlined
def _open_tile(state, tx, ty, width, height):
    """Transmittance one within the image and zero outside; the rest of the state zero."""
    state[_RED:_STATE] = _F0
    for p in range(PIXELS):
        x, y = tx * TILE + p % TILE, ty * TILE + p // TILE
        state[_T + p] = _F1 if x < width and y < height else _F0


@inlined
def _finished(state):
    going = load(state, _T)
    for block in range(1, BLOCKS):
        going = going + load(state, _T + block * LANES)
    return not any_lane(going > _F0)


@inlined
def _block_range(center, reach, top):
    """Blocks [first, last) of the tile that starts at ``top`` with pixel centers within center +- reach, hardly more.

    math.ceil and floor are calls into the C library, which also empty the vector registers.
    """
    low = max(center - reach - top - _HALF, _F0)
    high = min(center + reach - top - _HALF, np.float32(TILE - 1))
    return int(low + _ALMOST_ONE) // BLOCK_ROWS, int(high) // BLOCK_ROWS + 1


@kernel
def composite_tiles(start, stop, tile_start, rows, splats, rgb, alpha_out, depth_out, processed):
    """Composite tiles start..stop (numbered over all cameras) into rgb, alpha and accumulated depth, [C, H, W, .].

    processed [tiles] is the position behind each tile's last composited row.
    """
    height, width = rgb.shape[1], rgb.shape[2]
    tiles_x, tiles_y = -(-width // TILE), -(-height // TILE)
    state = np.empty(_STATE, np.float32)
    column, line = _pixel_offsets()
    zero, most = repeat(_F0), repeat(_ALPHA_MAX)
    for tile in range(start, stop):
        c, ty, tx = tile // (tiles_x * tiles_y), tile // tiles_x % tiles_y, tile % tiles_x
        left, top = np.float32(tx * TILE), np.float32(ty * TILE)
        _open_tile(state, tx, ty, width, height)
        state[_LEFT : _LEFT + PIXELS] = _F1
        begin, end = tile_start[tile], tile_start[tile + 1]
        position = begin
        while position < end:
            if (position - begin) % _EXIT_EVERY == 0 and _finished(state):
                break
            s = splats[rows[position, 0]]
            dx = (s[X] - left) - column
            first, last = _block_range(s[Y], s[TOP], top)
            for block in range(first, last):
                p = block * LANES
                dy = (s[Y] - top - np.float32(block * BLOCK_ROWS)) - line
                exponent = s[LEVEL] - (s[XX] * dx * dx + s[XY] * dx * dy + s[YY] * dy * dy)
                seen = (exponent >= _LOG2_THRESHOLD) & (exponent <= s[LEVEL])
                raw = exp2(select(seen, exponent, zero))
                alpha = select(seen, select(raw <= _ALPHA_MAX, raw, most), zero)
                before = load(state, _T + p)
                after = before * (_F1 - alpha)
                going = after > _STOP
                weight = select(going, alpha * before, zero)
                store(state, _T + p, select(going, after, zero))
                store(state, _RED + p, load(state, _RED + p) + weight * s[RED])
                store(state, _GREEN + p, load(state, _GREEN + p) + weight * s[GREEN])
                store(state, _BLUE + p, load(state, _BLUE + p) + weight * s[BLUE])
                store(state, _DEPTH + p, load(state, _DEPTH + p) + weight * s[DEPTH])
                store(state, _ALPHA + p, load(state, _ALPHA + p) + weight)
                store(state, _LEFT + p, select(going, after, load(state, _LEFT + p)))
            position += 1
        processed[tile] = position
        for y in range(ty * TILE, min(ty * TILE + TILE, height)):
            for x in range(tx * TILE, min(tx * TILE + TILE, width)):
                p = (y - ty * TILE) * TILE + x - tx * TILE
                rgb[c, y, x, 0] = state[_RED + p]
                rgb[c, y, x, 1] = state[_GREEN + p]
                rgb[c, y, x, 2] = state[_BLUE + p]
                # Transparent pixels are exact as a sum of weights, opaque ones by what is left.
                sparse = state[_ALPHA + p] < _HALF
                alpha_out[c, y, x] = state[_ALPHA + p] if sparse else _F1 - state[_LEFT + p]
                depth_out[c, y, x] = state[_DEPTH + p]


@inlined
def _load_gradients(state, c, tx, ty, rgb, alpha, depth, v_rgb, v_alpha, v_depth):
    """Incoming gradients of the tile's pixels, and the value they weigh the whole pixel with (the first suffix sum)."""
    height, width = rgb.shape[1], rgb.shape[2]
    for y in range(ty * TILE, min(ty * TILE + TILE, height)):
        for x in range(tx * TILE, min(tx * TILE + TILE, width)):
            p = (y - ty * TILE) * TILE + x - tx * TILE
            state[_RED + p] = v_rgb[c, y, x, 0]
            state[_GREEN + p] = v_rgb[c, y, x, 1]
            state[_BLUE + p] = v_rgb[c, y, x, 2]
            state[_ALPHA + p] = v_alpha[c, y, x]
            state[_DEPTH + p] = v_depth[c, y, x]
            state[_REST + p] = (
                v_rgb[c, y, x, 0] * rgb[c, y, x, 0]
                + v_rgb[c, y, x, 1] * rgb[c, y, x, 1]
                + v_rgb[c, y, x, 2] * rgb[c, y, x, 2]
                + v_alpha[c, y, x] * alpha[c, y, x]
                + v_depth[c, y, x] * depth[c, y, x]
            )


@kernel
def tile_gradients(
    start, stop, tile_start, processed, rows, splats, rgb, alpha_out, depth_out, v_rgb, v_alpha, v_depth, sums
):  # fmt: skip
    """What each row of tiles start..stop adds to the gradients of its Gaussian, into sums [rows * SUMS].

    Replays the tile front to back. With q_i = v . f_i the loss changes with alpha_i by
    T_i q_i - (sum_{j>i} w_j q_j) / (1 - alpha_i); the sum over what lies behind is the pixel's total minus what has
    passed, so nothing but the images has to be kept from the forward pass.
    """
    height, width = rgb.shape[1], rgb.shape[2]
    tiles_x, tiles_y = -(-width // TILE), -(-height // TILE)
    state = np.empty(_STATE, np.float32)
    column, line = _pixel_offsets()
    zero, most = repeat(_F0), repeat(_ALPHA_MAX)
    for tile in range(start, stop):
        c, ty, tx = tile // (tiles_x * tiles_y), tile // tiles_x % tiles_y, tile % tiles_x
        left, top = np.float32(tx * TILE), np.float32(ty * TILE)
        _open_tile(state, tx, ty, width, height)
        _load_gradients(state, c, tx, ty, rgb, alpha_out, depth_out, v_rgb, v_alpha, v_depth)
        for position in range(tile_start[tile], processed[tile]):
            s = splats[rows[position, 0]]
            dx = (s[X] - left) - column
            s_1, s_y, s_yy, g_red, g_green, g_blue, g_depth = zero, zero, zero, zero, zero, zero, zero
            first, last = _block_range(s[Y], s[TOP], top)
            for block in range(first, last):
                p = block * LANES
                dy = (s[Y] - top - np.float32(block * BLOCK_ROWS)) - line
                exponent = s[LEVEL] - (s[XX] * dx * dx + s[XY] * dx * dy + s[YY] * dy * dy)
                seen = (exponent >= _LOG2_THRESHOLD) & (exponent <= s[LEVEL])
                raw = exp2(select(seen, exponent, zero))
                free = raw <= _ALPHA_MAX
                alpha = select(seen, select(free, raw, most), zero)
                before = load(state, _T + p)
                remaining = _F1 - alpha
                after = before * remaining
                going = after > _STOP
                weight = select(going, alpha * before, zero)
                store(state, _T + p, select(going, after, zero))
                v_red, v_green = load(state, _RED + p), load(state, _GREEN + p)
                v_blue, v_far = load(state, _BLUE + p), load(state, _DEPTH + p)
                q = s[RED] * v_red + s[GREEN] * v_green + s[BLUE] * v_blue + s[DEPTH] * v_far + load(state, _ALPHA + p)
                behind = load(state, _REST + p) - weight * q
                store(state, _REST + p, behind)
                g_red += weight * v_red
                g_green += weight * v_green
                g_blue += weight * v_blue
                g_depth += weight * v_far
                v_exponent = select(going & free, alpha * (before * q - behind / remaining), zero)
                s_1 += v_exponent
                s_y += v_exponent * dy
                s_yy += v_exponent * dy * dy
            s_x = s_1 * dx
            parts = (s_1, s_x, s_y, s_x * dx, s_y * dx, s_yy, g_red, g_green, g_blue, g_depth)
            store(sums, np.int64(rows[position, 1]) * SUMS, totals(parts))
        for position in range(processed[tile], tile_start[tile + 1]):
            store(sums, np.int64(rows[position, 1]) * SUMS, zero)


@kernel
def sum_rows(
    start, stop, row_start, row_count, sums, opacities, conics, v_means2d, v_conics, v_opacities, v_colors, v_depths
):  # fmt: skip
    """For Gaussians start..stop: add up each one's rows, in order, per camera (opacities: over the cameras)."""
    total = np.empty(SUMS, np.float32)
    for n in range(start, stop):
        v_opacity = _F0
        for c in range(row_count.shape[0]):
            added = repeat(_F0)
            first = row_start[c, n]
            for r in range(first, first + row_count[c, n]):
                added += load(sums, r * SUMS)
            store(total, 0, added)
            a, b, d = conics[c, n, 0], conics[c, n, 1], conics[c, n, 2]
            v_means2d[c, n, 0], v_means2d[c, n, 1] = -(a * total[1] + b * total[2]), -(b * total[1] + d * total[2])
            v_conics[c, n, 0], v_conics[c, n, 1] = -_HALF * total[3], -total[4]
            v_conics[c, n, 2] = -_HALF * total[5]
            v_opacity += total[0]
            v_colors[c, n, 0], v_colors[c, n, 1], v_colors[c, n, 2] = total[6], total[7], total[8]
            v_depths[c, n] = total[9]
        v_opacities[n] = v_opacity / opacities[n] if v_opacity != _F0 else _F0
