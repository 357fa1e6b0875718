"""numba kernels: composite the tiles that numba_binning has filled, and the gradients of that.

Every row (Gaussian in a tile) has its own gradients, and the rows of a Gaussian lie side by side and are added in a fixed
order. Nothing is added by two threads, so results do not depend on their number.

The inner loops run over the 64 pixels of a tile without branches, which lets the compiler use vector instructions. A
finished pixel is one with transmittance zero. The per-pixel state lives in one flat array at constant offsets: with
separate arrays the compiler would have to prove that they do not overlap. Trip counts are constant; the forward pass skips
pixel rows that the Gaussian does not reach through a view that starts there: an index computed from two variables would
not be recognised as contiguous.
"""

from __future__ import annotations

import math

import numpy as np

from . import types
from .numba_runtime import TILE, kernel

PIXELS = TILE * TILE
GRADIENTS = 12
"""Numbers kept per row: mean x y, conic xx xy yy, opacity, red, green, blue, depth; two for alignment."""

_EXIT_EVERY = 8  # Gaussians between two looks whether the whole tile is finished

_F0, _F1, _HALF = np.float32(0), np.float32(1), np.float32(0.5)
_THRESHOLD = np.float32(types.ALPHA_THRESHOLD)
_ALPHA_MAX = np.float32(types.ALPHA_MAX)
_STOP = np.float32(types.TRANSMITTANCE_STOP)

_EXP_LIMIT = np.float32(20)
_LOG2E, _LN2 = np.float32(math.log2(math.e)), np.float32(math.log(2))
_E2, _E3, _E4 = np.float32(0.5), np.float32(0.16666665), np.float32(0.041668)
_E5, _E6 = np.float32(0.0083334), np.float32(0.0013889)
_ONE_BITS, _MANTISSA = np.int32(127), np.int32(23)


@kernel
def _exp_negative(x):
    """exp(-x) for x in [0, 20] to about 1e-7 relative (2^-n times a polynomial on +-ln(2)/2); larger x count as 20.

    The library's exp is no vector instruction, and a plain series is too inaccurate near the alpha threshold.
    """
    x = x if x < _EXP_LIMIT else _EXP_LIMIT  # also catches NaN
    n = np.int32(x * _LOG2E + _HALF)
    r = np.float32(n) * _LN2 - x
    poly = _E2 + r * (_E3 + r * (_E4 + r * (_E5 + r * _E6)))
    scale = np.int32((_ONE_BITS - n) << _MANTISSA).view(np.float32)
    return (_F1 + (r + r * r * poly)) * scale


# Offsets of the per-pixel state within the flat array.
_T, _X, _Y = 0, PIXELS, 2 * PIXELS
_RED, _GREEN, _BLUE, _DEPTH, _ALPHA = (k * PIXELS for k in range(3, 8))
_REST = 8 * PIXELS
_STATE = 9 * PIXELS


@kernel
def _open_tile(state, tx, ty, width, height):
    for p in range(PIXELS):
        x, y = tx * TILE + p % TILE, ty * TILE + p // TILE
        state[_X + p] = np.float32(x) + _HALF
        state[_Y + p] = np.float32(y) + _HALF
        state[_T + p] = _F1 if x < width and y < height else _F0


@kernel
def _finished(state):
    most = _F0
    for p in range(PIXELS):
        most = max(most, state[_T + p])
    return most == _F0


@kernel
def _pixel_rows(center, radius, ty):
    """Pixel rows [first, last) of tile row ty that the interval center +- radius meets."""
    top = np.float32(ty * TILE)
    low, high = max(center - radius - top, _F0), min(center + radius - top, np.float32(TILE))
    return int(low), int(math.ceil(high))


@kernel
def composite_tiles(
    start, stop, tile_start, gaussian, means2d, conics, opacities, colors, depths, radii, rgb, alpha_out, depth_out,
    processed,
):  # fmt: skip
    """Composite tiles start..stop (numbered over all cameras) into rgb, alpha and accumulated depth, [C, H, W, .]."""
    height, width = rgb.shape[1], rgb.shape[2]
    tiles_x, tiles_y = -(-width // TILE), -(-height // TILE)
    state = np.empty(_STATE, np.float32)
    for tile in range(start, stop):
        c, ty, tx = tile // (tiles_x * tiles_y), tile // tiles_x % tiles_y, tile % tiles_x
        _open_tile(state, tx, ty, width, height)
        state[_RED:_REST] = _F0
        begin, end = tile_start[tile], tile_start[tile + 1]
        position = begin
        while position < end:
            if (position - begin) % _EXIT_EVERY == 0 and _finished(state):
                break
            n = gaussian[position]
            mx, my = means2d[c, n, 0], means2d[c, n, 1]
            ha, b, hc = _HALF * conics[c, n, 0], conics[c, n, 1], _HALF * conics[c, n, 2]
            opacity, depth = opacities[n], depths[c, n]
            red, green, blue = colors[c, n, 0], colors[c, n, 1], colors[c, n, 2]
            first, last = _pixel_rows(my, np.float32(radii[c, n, 1]), ty)
            for y in range(first, last):
                part = state[TILE * y :]
                for p in range(TILE):
                    dx, dy = mx - part[_X + p], my - part[_Y + p]
                    sigma = ha * dx * dx + hc * dy * dy + b * dx * dy
                    alpha = min(opacity * _exp_negative(sigma), _ALPHA_MAX)
                    alpha = alpha if (sigma >= _F0) & (alpha >= _THRESHOLD) else _F0
                    before = part[_T + p]
                    after = before * (_F1 - alpha)
                    going = after > _STOP
                    weight = alpha * before if going else _F0
                    part[_T + p] = after if going else _F0
                    part[_RED + p] += weight * red
                    part[_GREEN + p] += weight * green
                    part[_BLUE + p] += weight * blue
                    part[_DEPTH + p] += weight * depth
                    part[_ALPHA + p] += weight
            position += 1
        processed[tile] = position
        for y in range(ty * TILE, min(ty * TILE + TILE, height)):
            for x in range(tx * TILE, min(tx * TILE + TILE, width)):
                p = (y - ty * TILE) * TILE + x - tx * TILE
                rgb[c, y, x, 0] = state[_RED + p]
                rgb[c, y, x, 1] = state[_GREEN + p]
                rgb[c, y, x, 2] = state[_BLUE + p]
                alpha_out[c, y, x] = state[_ALPHA + p]
                depth_out[c, y, x] = state[_DEPTH + p]


@kernel
def _load_gradients(state, c, tx, ty, rgb, alpha, depth, v_rgb, v_alpha, v_depth):
    """Incoming gradients of the tile's pixels, and the value they weigh the whole pixel with (the first suffix sum)."""
    height, width = rgb.shape[1], rgb.shape[2]
    state[_RED:_STATE] = _F0
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
    start, stop, tile_start, processed, gaussian, row, means2d, conics, opacities, colors, depths,
    rgb, alpha_out, depth_out, v_rgb, v_alpha, v_depth, gradients,
):  # fmt: skip
    """Gradients of each row of tiles start..stop, into gradients [rows, GRADIENTS].

    Replays the tile front to back. With q_i = v . f_i the loss changes with alpha_i by
    T_i q_i - (sum_{j>i} w_j q_j) / (1 - alpha_i); the sum over what lies behind is the pixel's total minus what has
    passed, so nothing but the images has to be kept from the forward pass.
    """
    height, width = rgb.shape[1], rgb.shape[2]
    tiles_x, tiles_y = -(-width // TILE), -(-height // TILE)
    state = np.empty(_STATE, np.float32)
    for tile in range(start, stop):
        c, ty, tx = tile // (tiles_x * tiles_y), tile // tiles_x % tiles_y, tile % tiles_x
        _open_tile(state, tx, ty, width, height)
        _load_gradients(state, c, tx, ty, rgb, alpha_out, depth_out, v_rgb, v_alpha, v_depth)
        for position in range(tile_start[tile], processed[tile]):
            n = gaussian[position]
            mx, my = means2d[c, n, 0], means2d[c, n, 1]
            a, b, cc = conics[c, n, 0], conics[c, n, 1], conics[c, n, 2]
            ha, hc = _HALF * a, _HALF * cc
            opacity, depth = opacities[n], depths[c, n]
            red, green, blue = colors[c, n, 0], colors[c, n, 1], colors[c, n, 2]
            s0, sx, sy, sxx, sxy, syy = _F0, _F0, _F0, _F0, _F0, _F0
            g_red, g_green, g_blue, g_depth = _F0, _F0, _F0, _F0
            # All 64 pixels: skipping rows as in the forward pass saves less than the sums at each loop's end cost.
            for p in range(PIXELS):
                dx, dy = mx - state[_X + p], my - state[_Y + p]
                sigma = ha * dx * dx + hc * dy * dy + b * dx * dy
                raw = opacity * _exp_negative(sigma)
                alpha = min(raw, _ALPHA_MAX)
                alpha = alpha if (sigma >= _F0) & (alpha >= _THRESHOLD) else _F0
                before = state[_T + p]
                remaining = _F1 - alpha
                after = before * remaining
                going = after > _STOP
                weight = alpha * before if going else _F0
                state[_T + p] = after if going else _F0
                g_red += weight * state[_RED + p]
                g_green += weight * state[_GREEN + p]
                g_blue += weight * state[_BLUE + p]
                g_depth += weight * state[_DEPTH + p]
                q = (
                    red * state[_RED + p]
                    + green * state[_GREEN + p]
                    + blue * state[_BLUE + p]
                    + depth * state[_DEPTH + p]
                    + state[_ALPHA + p]
                )
                behind = state[_REST + p] - weight * q
                state[_REST + p] = behind
                v_sigma = alpha * (behind / remaining - before * q)
                v_sigma = v_sigma if going & (raw <= _ALPHA_MAX) else _F0
                s0 += v_sigma
                sx += v_sigma * dx
                sy += v_sigma * dy
                sxx += v_sigma * dx * dx
                sxy += v_sigma * dx * dy
                syy += v_sigma * dy * dy
            out = row[position]
            gradients[out, 0] = a * sx + b * sy
            gradients[out, 1] = b * sx + cc * sy
            gradients[out, 2] = _HALF * sxx
            gradients[out, 3] = sxy
            gradients[out, 4] = _HALF * syy
            gradients[out, 5] = -s0 / opacity
            gradients[out, 6] = g_red
            gradients[out, 7] = g_green
            gradients[out, 8] = g_blue
            gradients[out, 9] = g_depth
        for position in range(processed[tile], tile_start[tile + 1]):
            gradients[row[position], :] = _F0


@kernel
def sum_rows(start, stop, row_start, row_count, gradients, v_means2d, v_conics, v_opacities, v_colors, v_depths):
    """For Gaussians start..stop: add up each one's rows, in order, per camera (opacities: over the cameras)."""
    total = np.empty(GRADIENTS, np.float32)
    for n in range(start, stop):
        v_opacity = _F0
        for c in range(row_count.shape[0]):
            total[:] = _F0
            first = row_start[c, n]
            for r in range(first, first + row_count[c, n]):
                for k in range(GRADIENTS):
                    total[k] += gradients[r, k]
            v_means2d[c, n, 0], v_means2d[c, n, 1] = total[0], total[1]
            v_conics[c, n, 0], v_conics[c, n, 1], v_conics[c, n, 2] = total[2], total[3], total[4]
            v_opacity += total[5]
            v_colors[c, n, 0], v_colors[c, n, 1], v_colors[c, n, 2] = total[6], total[7], total[8]
            v_depths[c, n] = total[9]
        v_opacities[n] = v_opacity
