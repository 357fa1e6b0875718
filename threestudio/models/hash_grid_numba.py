"""Looking up a grid encoding on the CPU, by compiled loops: 2 or 3 coordinates, float32 or float64.

The same three functions as in `hash_grid_torch`, which a test compares with these. Threads share the levels, or the
points where the result is per point, so none writes where another does and the order of sums is always the same.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from threestudio.models.hash_grid_layout import INTERPOLATIONS, PRIMES, GridLayout, Level

_P1, _P2 = PRIMES[1:3]
_SMOOTHSTEP, _NEAREST = INTERPOLATIONS.index("Smoothstep"), INTERPOLATIONS.index("Nearest")
# Everything of LLVM's fast-math except the assumptions that NaN and infinity never occur.
_OPTIONS = {"nogil": True, "error_model": "numpy", "fastmath": {"reassoc", "contract", "nsz", "arcp"}}
_SMALLEST_SHARE = 2048  # points for which another thread pays


def _kernel(function: Callable) -> Callable:
    try:
        return numba.njit(cache=True, **_OPTIONS)(function)
    except RuntimeError as error:
        if "no locator available" not in str(error):
            raise
        warnings.warn(
            "No writable folder for the compiled hash grid: every process compiles it anew. Set NUMBA_CACHE_DIR to a "
            "writable folder.",
            stacklevel=2,
        )
        return numba.njit(**_OPTIONS)(function)


def _inlined(function: Callable) -> Callable:
    return numba.njit(forceinline=True, **_OPTIONS)(function)


@_inlined
def _cell(x, n, scale, mode, low, factors):
    """The grid point below point n, and each axis' share of the weights.

    `factors` is indexed by the order of the derivative, the axis, and 0 for the near or 1 for the far side. A missing
    third coordinate lies on grid point 0 of its axis.
    """
    for axis in range(x.shape[1]):
        position = x[n, axis] * scale + 0.5
        floor = np.floor(position)
        f = position - floor
        low[axis] = np.int64(floor)
        far, first, second = f, scale, 0.0
        if mode == _SMOOTHSTEP:
            far, first, second = f * f * (3 - 2 * f), 6 * f * (1 - f) * scale, (6 - 12 * f) * scale * scale
        elif mode == _NEAREST:
            far, first = 0.0, 0.0
        factors[0, axis, 0], factors[0, axis, 1] = 1 - far, far
        factors[1, axis, 0], factors[1, axis, 1] = -first, first
        factors[2, axis, 0], factors[2, axis, 1] = -second, second


@_inlined
def _share(factors, corner, ox, oy, oz):
    """The weight of a corner, differentiated so often along each axis."""
    return factors[ox, 0, corner & 1] * factors[oy, 1, (corner >> 1) & 1] * factors[oz, 2, corner >> 2]


@_inlined
def _weight(factors, corner, v, n):
    if v is None:
        return _share(factors, corner, 0, 0, 0)
    total = v[n, 0] * _share(factors, corner, 1, 0, 0) + v[n, 1] * _share(factors, corner, 0, 1, 0)
    if v.shape[1] == 3:
        total += v[n, 2] * _share(factors, corner, 0, 0, 1)
    return total


@_inlined
def _slope(factors, corner, axis, v, n):
    ox, oy, oz = np.int64(axis == 0), np.int64(axis == 1), np.int64(axis == 2)
    if v is None:
        return _share(factors, corner, ox, oy, oz)
    total = v[n, 0] * _share(factors, corner, ox + 1, oy, oz) + v[n, 1] * _share(factors, corner, ox, oy + 1, oz)
    if v.shape[1] == 3:
        total += v[n, 2] * _share(factors, corner, ox, oy, oz + 1)
    return total


@_inlined
def _scratch():
    factors = np.zeros((3, 3, 2))
    factors[0, :, 0] = 1.0  # a missing coordinate's share
    return np.zeros(3, np.int64), factors


@_inlined
def _entries(low, level, rows):
    """The entries of a cell's corners. All are known before the first is read, so that the reads can overlap."""
    hashed, offset, size, stride_y, stride_z, corners = level[0] != 0, level[1], level[2], level[3], level[4], level[6]
    if hashed:
        y, z = low[1] * _P1, low[2] * _P2
        for corner in range(corners):
            row = (low[0] + (corner & 1)) ^ (y + _P1 if corner & 2 else y) ^ (z + _P2 if corner & 4 else z)
            rows[corner] = offset + (row & (size - 1))
        return
    first = low[0] + low[1] * stride_y + low[2] * stride_z
    for corner in range(corners):
        row = first + (corner & 1) + (stride_y if corner & 2 else 0) + (stride_z if corner & 4 else 0)
        if row < 0 or row >= size:  # rare, and the division is slow
            row %= size
        rows[corner] = offset + row


@_kernel
def _gather(x, v, table, scale, level, out):
    (low, factors), rows, weights = _scratch(), np.zeros(8, np.uint64), np.zeros(8)
    for n in range(x.shape[0]):
        _cell(x, n, scale, level[5], low, factors)
        _entries(low, level, rows)
        for corner in range(level[6]):
            weights[corner] = _weight(factors, corner, v, n)
        for feature in range(table.shape[1]):
            total = 0.0
            for corner in range(level[6]):
                total += weights[corner] * table[rows[corner], feature]
            out[feature, n] = total


@_kernel
def _scatter(x, v, g, scale, level, out):
    (low, factors), rows = _scratch(), np.zeros(8, np.uint64)
    for n in range(x.shape[0]):
        _cell(x, n, scale, level[5], low, factors)
        _entries(low, level, rows)
        for corner in range(level[6]):
            weight = _weight(factors, corner, v, n)
            for feature in range(out.shape[1]):
                out[rows[corner], feature] += weight * g[feature, n]


@_kernel
def _contract(start, stop, x, v, table, g, scales, levels, out):
    (low, factors), rows = _scratch(), np.zeros(8, np.uint64)
    features = table.shape[1]
    for k in range(len(scales)):
        level = levels[k]
        for n in range(start, stop):
            _cell(x, n, scales[k], level[5], low, factors)
            _entries(low, level, rows)
            for corner in range(level[6]):
                inner = 0.0
                for feature in range(features):
                    inner += table[rows[corner], feature] * g[k * features + feature, n]
                for axis in range(x.shape[1]):
                    out[n, axis] += inner * _slope(factors, corner, axis, v, n)


def supports(x: Tensor, layout: GridLayout) -> bool:
    """Whether the compiled loops can take these points."""
    return x.device.type == "cpu" and layout.dims in (2, 3) and x.dtype in (torch.float32, torch.float64)


def gather(x: Tensor, v: Tensor | None, params: Tensor, layout: GridLayout) -> Tensor:
    """See `hash_grid_torch.gather`. The result [N, L * F] is the transpose of a contiguous tensor."""
    out = params.new_empty(len(layout.levels), layout.features, len(x))
    points, direction, table, target = _array(x), _array(v), _table(params, layout), out.numpy()
    _share_out(
        lambda k: _gather(points, direction, table, layout.levels[k].scale, _numbers(layout, k), target[k]),
        range(len(layout.levels)),
        len(x),
    )
    return out.flatten(0, 1).t()


def scatter(x: Tensor, v: Tensor | None, g: Tensor, layout: GridLayout) -> Tensor:
    """See `hash_grid_torch.scatter`."""
    out = g.new_zeros(layout.entries * layout.features)
    points, direction, target = _array(x), _array(v), _table(out, layout)
    columns = _array(g.t()).reshape(len(layout.levels), layout.features, len(x))
    _share_out(
        lambda k: _scatter(points, direction, columns[k], layout.levels[k].scale, _numbers(layout, k), target),
        range(len(layout.levels)),
        len(x),
    )
    return out


def contract(x: Tensor, v: Tensor | None, params: Tensor, g: Tensor, layout: GridLayout) -> Tensor:
    """See `hash_grid_torch.contract`."""
    out = torch.zeros_like(x, memory_format=torch.contiguous_format)
    points, direction, table, columns, target = _array(x), _array(v), _table(params, layout), _array(g.t()), out.numpy()
    scales = np.array([level.scale for level in layout.levels])
    levels = np.stack([_numbers(layout, k) for k in range(len(layout.levels))])
    starts = range(0, len(x), max(_SMALLEST_SHARE, -(-len(x) // (4 * torch.get_num_threads()))))
    _share_out(
        lambda start: _contract(
            start, min(start + starts.step, len(x)), points, direction, table, columns, scales, levels, target
        ),
        starts,
        len(x),
    )
    return out


def _numbers(layout: GridLayout, k: int) -> np.ndarray:
    """What a kernel must know of level k, apart from its scale."""
    level: Level = layout.levels[k]
    strides = (*level.strides, 0)
    mode = INTERPOLATIONS.index(layout.interpolation)
    corners = 1 if mode == _NEAREST else 2**layout.dims
    return np.array([level.hashed, level.offset, level.size, strides[1], strides[2], mode, corners])


def _array(tensor: Tensor | None) -> np.ndarray | None:
    return None if tensor is None else tensor.detach().contiguous().numpy()


def _table(params: Tensor, layout: GridLayout) -> np.ndarray:
    return _array(params).reshape(-1, layout.features)


def _share_out(work: Callable[[int], Any], tasks: Iterable[int], points: int) -> None:
    """Do the tasks on torch's number of threads. A pool for each call: one kept would not survive a fork."""
    threads = min(torch.get_num_threads(), -(-points // _SMALLEST_SHARE))
    if threads <= 1:
        for task in tasks:
            work(task)
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="hash-grid") as pool:
        list(pool.map(work, tasks))
