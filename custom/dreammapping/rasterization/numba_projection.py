"""numba kernel: projection of the Gaussians and their view-dependent color.

The same formulas as ``reference.project`` and ``spherical_harmonics``, one Gaussian at a time, in float32. Small
vectors are tuples: the compiler keeps those in registers, but not the elements of arrays.
"""

from __future__ import annotations

import math

import numpy as np

from . import types
from .numba_harmonics import SH_MAX, sh_basis
from .numba_runtime import inlined, kernel

_F0, _F1, _F2, _HALF = np.float32(0), np.float32(1), np.float32(2), np.float32(0.5)
_THRESHOLD = np.float32(types.ALPHA_THRESHOLD)
_EXTENT_MAX = np.float32(types.EXTENT_MAX)
_RADIUS_MAX = np.float32(2.0**30)
_TINY = np.float32(1e-12)  # as torch.nn.functional.normalize


def slope_limits(Ks: np.ndarray, width: int, height: int) -> np.ndarray:
    """[C, 4] lowest and highest x / z, then y / z, at which the Jacobian of the projection is taken."""
    focal, center = Ks[:, [0, 1], [0, 1]], Ks[:, :2, 2]
    size = np.array([width, height], np.float32)
    margin = np.float32(0.5 * types.FOV_MARGIN) * size / focal
    limits = np.stack([-center / focal - margin, (size - center) / focal + margin], axis=-1)
    return np.ascontiguousarray(limits.reshape(-1, 4), np.float32)


@inlined
def dot(a, b):
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


@inlined
def principal_axes(quats, n):
    """Columns of the rotation matrix of quaternion n, and the quaternion's inverse length."""
    w, x, y, z = quats[n, 0], quats[n, 1], quats[n, 2], quats[n, 3]
    inverse = _F1 / max(math.sqrt(w * w + x * x + y * y + z * z), _TINY)
    w, x, y, z = w * inverse, x * inverse, y * inverse, z * inverse
    first = (_F1 - _F2 * (y * y + z * z), _F2 * (x * y + w * z), _F2 * (x * z - w * y))
    second = (_F2 * (x * y - w * z), _F1 - _F2 * (x * x + z * z), _F2 * (y * z + w * x))
    third = (_F2 * (x * z + w * y), _F2 * (y * z - w * x), _F1 - _F2 * (x * x + y * y))
    return first, second, third, inverse


@inlined
def matrix_row(viewmats, c, i):
    return viewmats[c, i, 0], viewmats[c, i, 1], viewmats[c, i, 2]


@inlined
def to_camera(means, viewmats, n, c):
    """Center of Gaussian n in the frame of camera c."""
    mean = (means[n, 0], means[n, 1], means[n, 2])
    return (
        dot(matrix_row(viewmats, c, 0), mean) + viewmats[c, 0, 3],
        dot(matrix_row(viewmats, c, 1), mean) + viewmats[c, 1, 3],
        dot(matrix_row(viewmats, c, 2), mean) + viewmats[c, 2, 3],
    )


@inlined
def pixel_slopes(viewmats, Ks, limits, c, x, y, inverse_z):
    """The rows of J W, the derivative of the pixel with respect to the world, and the limited slopes J is taken at."""
    slope_x = min(max(x * inverse_z, limits[c, 0]), limits[c, 1])
    slope_y = min(max(y * inverse_z, limits[c, 2]), limits[c, 3])
    sx, sy = Ks[c, 0, 0] * inverse_z, Ks[c, 1, 1] * inverse_z
    w0, w1, w2 = matrix_row(viewmats, c, 0), matrix_row(viewmats, c, 1), matrix_row(viewmats, c, 2)
    across = (sx * (w0[0] - slope_x * w2[0]), sx * (w0[1] - slope_x * w2[1]), sx * (w0[2] - slope_x * w2[2]))
    down = (sy * (w1[0] - slope_y * w2[0]), sy * (w1[1] - slope_y * w2[1]), sy * (w1[2] - slope_y * w2[2]))
    return across, down, slope_x, slope_y


@inlined
def view_direction(means, positions, n, c):
    """Unit vector from camera c to Gaussian n, and the inverse distance."""
    x, y, z = means[n, 0] - positions[c, 0], means[n, 1] - positions[c, 1], means[n, 2] - positions[c, 2]
    inverse = _F1 / max(math.sqrt(x * x + y * y + z * z), _TINY)
    return x * inverse, y * inverse, z * inverse, inverse


@inlined
def _ceil(x):
    """The next integer above x in [0, _RADIUS_MAX], where larger ones end. math.ceil is a call into the C library."""
    x = min(x, _RADIUS_MAX)
    whole = np.float32(np.int32(x))
    return whole + _F1 if whole < x else whole


@inlined
def _write_color(means, positions, sh, degree, c, n, basis, colors):
    if degree < 0:
        for k in range(3):
            colors[c, n, k] = sh[n, 0, k]
        return
    dx, dy, dz, _ = view_direction(means, positions, n, c)
    sh_basis(dx, dy, dz, degree, basis)
    for k in range(3):
        value = _HALF
        for i in range((degree + 1) * (degree + 1)):
            value += basis[i] * sh[n, i, k]
        colors[c, n, k] = max(value, _F0)


@inlined
def _clear(c, n, means2d, depths, conics, radii, colors):
    """Element by element: numba makes a general loop of the assignment of a slice."""
    means2d[c, n, 0], means2d[c, n, 1], depths[c, n] = _F0, _F0, _F0
    conics[c, n, 0], conics[c, n, 1], conics[c, n, 2] = _F0, _F0, _F0
    radii[c, n, 0], radii[c, n, 1] = 0, 0
    colors[c, n, 0], colors[c, n, 1], colors[c, n, 2] = _F0, _F0, _F0


@kernel
def project_gaussians(
    start, stop, means, quats, scales, opacities, sh, degree, viewmats, Ks, positions, limits, width, height, near, far,
    eps2d, means2d, depths, conics, radii, colors,
):  # fmt: skip
    """Gaussians start..stop into every camera; zeros where one is culled. degree < 0: sh [N, 1, 3] are plain colors."""
    basis = np.empty(SH_MAX, np.float32)
    for n in range(start, stop):
        opaque = opacities[n] >= _THRESHOLD
        ratio = opacities[n] / _THRESHOLD if opaque else _F1
        extent = min(_EXTENT_MAX, np.float32(math.sqrt(_F2 * math.log(ratio))))
        first, second, third, _ = principal_axes(quats, n)
        for c in range(viewmats.shape[0]):
            x, y, z = to_camera(means, viewmats, n, c)
            if not (opaque and z >= near and z <= far):
                _clear(c, n, means2d, depths, conics, radii, colors)
                continue
            inverse_z = _F1 / z
            across, down, _, _ = pixel_slopes(viewmats, Ks, limits, c, x, y, inverse_z)
            # Columns of J W R diag(scales); the covariance is that times its transpose.
            s0, s1, s2 = scales[n, 0], scales[n, 1], scales[n, 2]
            x0, x1, x2 = dot(across, first) * s0, dot(across, second) * s1, dot(across, third) * s2
            y0, y1, y2 = dot(down, first) * s0, dot(down, second) * s1, dot(down, third) * s2
            xx, yy = x0 * x0 + x1 * x1 + x2 * x2 + eps2d, y0 * y0 + y1 * y1 + y2 * y2 + eps2d
            xy = x0 * y0 + x1 * y1 + x2 * y2
            det = xx * yy - xy * xy
            u, v = Ks[c, 0, 0] * x * inverse_z + Ks[c, 0, 2], Ks[c, 1, 1] * y * inverse_z + Ks[c, 1, 2]
            rx, ry = _ceil(extent * np.float32(math.sqrt(xx))), _ceil(extent * np.float32(math.sqrt(yy)))
            on_image = u + rx > _F0 and u - rx < width and v + ry > _F0 and v - ry < height
            if not (det > _F0 and on_image and (rx > _F0 or ry > _F0)):  # NaN and infinite sizes end here
                _clear(c, n, means2d, depths, conics, radii, colors)
                continue
            inverse = _F1 / det
            means2d[c, n, 0], means2d[c, n, 1] = u, v
            depths[c, n] = z
            conics[c, n, 0], conics[c, n, 1], conics[c, n, 2] = yy * inverse, -xy * inverse, xx * inverse
            radii[c, n, 0], radii[c, n, 1] = np.int32(rx), np.int32(ry)
            _write_color(means, positions, sh, degree, c, n, basis, colors)
