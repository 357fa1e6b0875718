"""numba kernel: the gradients of numba_projection.

A Gaussian belongs to one thread, which loops over the cameras, so that gradients are summed in a fixed order. The
cameras' gradients meet in that of the 3D covariance; rotation and sizes are derived from the sum.
"""

from __future__ import annotations

import numpy as np

from .numba_harmonics import SH_MAX, sh_basis, sh_slopes
from .numba_projection import dot, matrix_row, pixel_slopes, principal_axes, to_camera, view_direction
from .numba_runtime import inlined, kernel

_F0, _F1, _F2, _HALF = np.float32(0), np.float32(1), np.float32(2), np.float32(0.5)


@inlined
def _covariance(axes, scales, n):
    """Of the covariance R diag(scales)^2 R^T: xx, xy, xz, yy, yz, zz."""
    first, second, third = axes
    s0, s1, s2 = scales[n, 0] * scales[n, 0], scales[n, 1] * scales[n, 1], scales[n, 2] * scales[n, 2]
    weighted = (s0 * first[0], s1 * second[0], s2 * third[0])
    xx, xy = dot(weighted, (first[0], second[0], third[0])), dot(weighted, (first[1], second[1], third[1]))
    xz = dot(weighted, (first[2], second[2], third[2]))
    weighted = (s0 * first[1], s1 * second[1], s2 * third[1])
    yy, yz = dot(weighted, (first[1], second[1], third[1])), dot(weighted, (first[2], second[2], third[2]))
    zz = s0 * first[2] * first[2] + s1 * second[2] * second[2] + s2 * third[2] * third[2]
    return xx, xy, xz, yy, yz, zz


@inlined
def _times(m, v):
    """Symmetric matrix (xx, xy, xz, yy, yz, zz) times vector."""
    return dot((m[0], m[1], m[2]), v), dot((m[1], m[3], m[4]), v), dot((m[2], m[4], m[5]), v)


@inlined
def _cov2d_gradient(conics, v_conics, c, n):
    """Gradient of the 2D covariance (symmetric; xx, xy, yy entries of the matrix): -Q V Q with Q the conic."""
    a, b, d = conics[c, n, 0], conics[c, n, 1], conics[c, n, 2]
    va, vb, vd = v_conics[c, n, 0], _HALF * v_conics[c, n, 1], v_conics[c, n, 2]
    p00, p01 = a * va + b * vb, a * vb + b * vd
    p10, p11 = b * va + d * vb, b * vb + d * vd
    return -(p00 * a + p01 * b), -(p00 * b + p01 * d), -(p10 * b + p11 * d)


@inlined
def _footprint_gradient(viewmats, Ks, limits, c, center, inverse_z, covariance, g):
    """From the gradient g of the 2D covariance M S M^T, with M = J W, to those of S and of the center in the camera."""
    x, y, _ = center
    across, down, slope_x, slope_y = pixel_slopes(viewmats, Ks, limits, c, x, y, inverse_z)
    g0 = (g[0] * across[0] + g[1] * down[0], g[0] * across[1] + g[1] * down[1], g[0] * across[2] + g[1] * down[2])
    g1 = (g[1] * across[0] + g[2] * down[0], g[1] * across[1] + g[2] * down[1], g[1] * across[2] + g[2] * down[2])
    v_covariance = (
        across[0] * g0[0] + down[0] * g1[0], across[0] * g0[1] + down[0] * g1[1], across[0] * g0[2] + down[0] * g1[2],
        across[1] * g0[1] + down[1] * g1[1], across[1] * g0[2] + down[1] * g1[2], across[2] * g0[2] + down[2] * g1[2],
    )  # fmt: skip
    h0, h1 = _times(covariance, g0), _times(covariance, g1)  # half the gradients of the rows of M
    toward = matrix_row(viewmats, c, 2)
    v_slope_x = -_F2 * Ks[c, 0, 0] * inverse_z * dot(h0, toward)
    v_slope_y = -_F2 * Ks[c, 1, 1] * inverse_z * dot(h1, toward)
    v_x, v_y, v_z = _F0, _F0, -_F2 * (dot(h0, across) + dot(h1, down)) * inverse_z  # M is proportional to 1 / z
    if slope_x == x * inverse_z:  # not limited
        v_x = v_slope_x * inverse_z
        v_z -= v_slope_x * slope_x * inverse_z
    if slope_y == y * inverse_z:
        v_y = v_slope_y * inverse_z
        v_z -= v_slope_y * slope_y * inverse_z
    return v_covariance, (v_x, v_y, v_z)


@inlined
def _color_gradient(means, positions, sh, degree, colors, v_colors, c, n, basis, weights, v_sh):
    """Add to v_sh[n] and return the gradient of the mean through the viewing direction."""
    if degree < 0:
        for k in range(3):
            v_sh[n, 0, k] += v_colors[c, n, k]
        return _F0, _F0, _F0
    dx, dy, dz, inverse = view_direction(means, positions, n, c)
    sh_basis(dx, dy, dz, degree, basis)
    v0 = v_colors[c, n, 0] if colors[c, n, 0] > _F0 else _F0
    v1 = v_colors[c, n, 1] if colors[c, n, 1] > _F0 else _F0
    v2 = v_colors[c, n, 2] if colors[c, n, 2] > _F0 else _F0
    for i in range((degree + 1) * (degree + 1)):
        v_sh[n, i, 0] += basis[i] * v0
        v_sh[n, i, 1] += basis[i] * v1
        v_sh[n, i, 2] += basis[i] * v2
        weights[i] = sh[n, i, 0] * v0 + sh[n, i, 1] * v1 + sh[n, i, 2] * v2
    if degree == 0:
        return _F0, _F0, _F0
    gx, gy, gz = sh_slopes(dx, dy, dz, degree, weights)
    along = gx * dx + gy * dy + gz * dz
    return (gx - along * dx) * inverse, (gy - along * dy) * inverse, (gz - along * dz) * inverse


@inlined
def _quat_gradient(quats, n, inverse, v):
    """Gradient of the (unnormalised) quaternion from that of its rotation matrix."""
    w, x, y, z = quats[n, 0] * inverse, quats[n, 1] * inverse, quats[n, 2] * inverse, quats[n, 3] * inverse
    gw = _F2 * (x * (v[2, 1] - v[1, 2]) + y * (v[0, 2] - v[2, 0]) + z * (v[1, 0] - v[0, 1]))
    gx = _F2 * (y * (v[0, 1] + v[1, 0]) + z * (v[0, 2] + v[2, 0]) + w * (v[2, 1] - v[1, 2]))
    gy = _F2 * (x * (v[0, 1] + v[1, 0]) + z * (v[1, 2] + v[2, 1]) + w * (v[0, 2] - v[2, 0]))
    gz = _F2 * (x * (v[0, 2] + v[2, 0]) + y * (v[1, 2] + v[2, 1]) + w * (v[1, 0] - v[0, 1]))
    gx -= _F2 * _F2 * x * (v[1, 1] + v[2, 2])
    gy -= _F2 * _F2 * y * (v[0, 0] + v[2, 2])
    gz -= _F2 * _F2 * z * (v[0, 0] + v[1, 1])
    along = gw * w + gx * x + gy * y + gz * z
    return (gw - along * w) * inverse, (gx - along * x) * inverse, (gy - along * y) * inverse, (gz - along * z) * inverse


@inlined
def _write_shape_gradient(quats, scales, n, axes, inverse, v_covariance, v_rotation, v_quats, v_scales):
    """From the gradient of the covariance, R diag(scales)^2 R^T, to those of the quaternion and the sizes."""
    for j in range(3):
        axis = axes[j]
        v_axis = _times(v_covariance, axis)
        s = scales[n, j]
        v_scales[n, j] = _F2 * s * dot(axis, v_axis)
        for i in range(3):
            v_rotation[i, j] = _F2 * s * s * v_axis[i]
    gw, gx, gy, gz = _quat_gradient(quats, n, inverse, v_rotation)
    v_quats[n, 0], v_quats[n, 1], v_quats[n, 2], v_quats[n, 3] = gw, gx, gy, gz


@kernel
def projection_gradients(
    start, stop, means, quats, scales, sh, degree, viewmats, Ks, positions, limits,
    conics, radii, colors, v_means2d, v_depths, v_conics, v_colors, v_means, v_quats, v_scales, v_sh,
):  # fmt: skip
    """Gradients of Gaussians start..stop, summed over the cameras; zeros for one that no camera sees."""
    v_rotation = np.empty((3, 3), np.float32)
    basis, weights = np.empty(SH_MAX, np.float32), np.empty(SH_MAX, np.float32)
    for n in range(start, stop):
        first, second, third, inverse = principal_axes(quats, n)
        axes = (first, second, third)
        covariance = _covariance(axes, scales, n)
        for i in range(v_sh.shape[1]):
            v_sh[n, i, 0], v_sh[n, i, 1], v_sh[n, i, 2] = _F0, _F0, _F0
        xx, xy, xz, yy, yz, zz = _F0, _F0, _F0, _F0, _F0, _F0
        mx, my, mz = _F0, _F0, _F0
        seen = False
        for c in range(viewmats.shape[0]):
            if radii[c, n, 0] <= 0 and radii[c, n, 1] <= 0:
                continue
            seen = True
            center = to_camera(means, viewmats, n, c)
            x, y, z = center
            inverse_z = _F1 / z
            g = _cov2d_gradient(conics, v_conics, c, n)
            part, v_center = _footprint_gradient(viewmats, Ks, limits, c, center, inverse_z, covariance, g)
            xx, xy, xz = xx + part[0], xy + part[1], xz + part[2]
            yy, yz, zz = yy + part[3], yz + part[4], zz + part[5]
            gu, gv = Ks[c, 0, 0] * inverse_z * v_means2d[c, n, 0], Ks[c, 1, 1] * inverse_z * v_means2d[c, n, 1]
            gx, gy = v_center[0] + gu, v_center[1] + gv
            gz = v_center[2] + v_depths[c, n] - (gu * x + gv * y) * inverse_z
            vx, vy, vz = _color_gradient(means, positions, sh, degree, colors, v_colors, c, n, basis, weights, v_sh)
            mx += viewmats[c, 0, 0] * gx + viewmats[c, 1, 0] * gy + viewmats[c, 2, 0] * gz + vx
            my += viewmats[c, 0, 1] * gx + viewmats[c, 1, 1] * gy + viewmats[c, 2, 1] * gz + vy
            mz += viewmats[c, 0, 2] * gx + viewmats[c, 1, 2] * gy + viewmats[c, 2, 2] * gz + vz
        v_means[n, 0], v_means[n, 1], v_means[n, 2] = mx, my, mz
        if seen:
            sums = (xx, xy, xz, yy, yz, zz)
            _write_shape_gradient(quats, scales, n, axes, inverse, sums, v_rotation, v_quats, v_scales)
        else:  # its rotation may be no number
            v_quats[n, 0], v_quats[n, 1], v_quats[n, 2], v_quats[n, 3] = _F0, _F0, _F0, _F0
            v_scales[n, 0], v_scales[n, 1], v_scales[n, 2] = _F0, _F0, _F0
