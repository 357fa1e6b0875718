"""numba kernels: projection of the Gaussians and their view-dependent color, forward and backward.

The same formulas as ``reference.project`` and ``spherical_harmonics``, one Gaussian at a time, in float32. A range of
Gaussians belongs to one thread, which loops over the cameras, so that gradients are summed in a fixed order.
"""

from __future__ import annotations

import math

import numpy as np

from . import types
from .numba_runtime import kernel

_F0, _F1, _F2, _HALF = np.float32(0), np.float32(1), np.float32(2), np.float32(0.5)
_THRESHOLD = np.float32(types.ALPHA_THRESHOLD)
_EXTENT_MAX = np.float32(types.EXTENT_MAX)
_MARGIN = np.float32(0.5 * types.FOV_MARGIN)
_RADIUS_MAX = np.float32(2.0**30)
_TINY = np.float32(1e-12)  # as torch.nn.functional.normalize
_SH_MAX = 25


@kernel
def _scaled_axes(quats, scales, n, rotation, axes):
    """rotation = R(quaternion n), axes = R diag(scales). Returns the inverse length of the quaternion."""
    w, x, y, z = quats[n, 0], quats[n, 1], quats[n, 2], quats[n, 3]
    inverse = _F1 / max(math.sqrt(w * w + x * x + y * y + z * z), _TINY)
    w, x, y, z = w * inverse, x * inverse, y * inverse, z * inverse
    rotation[0, 0] = _F1 - _F2 * (y * y + z * z)
    rotation[0, 1] = _F2 * (x * y - w * z)
    rotation[0, 2] = _F2 * (x * z + w * y)
    rotation[1, 0] = _F2 * (x * y + w * z)
    rotation[1, 1] = _F1 - _F2 * (x * x + z * z)
    rotation[1, 2] = _F2 * (y * z - w * x)
    rotation[2, 0] = _F2 * (x * z - w * y)
    rotation[2, 1] = _F2 * (y * z + w * x)
    rotation[2, 2] = _F1 - _F2 * (x * x + y * y)
    for i in range(3):
        for j in range(3):
            axes[i, j] = rotation[i, j] * scales[n, j]
    return inverse


@kernel
def _to_camera(means, viewmats, n, c):
    x, y, z = means[n, 0], means[n, 1], means[n, 2]
    return (
        viewmats[c, 0, 0] * x + viewmats[c, 0, 1] * y + viewmats[c, 0, 2] * z + viewmats[c, 0, 3],
        viewmats[c, 1, 0] * x + viewmats[c, 1, 1] * y + viewmats[c, 1, 2] * z + viewmats[c, 1, 3],
        viewmats[c, 2, 0] * x + viewmats[c, 2, 1] * y + viewmats[c, 2, 2] * z + viewmats[c, 2, 3],
    )


@kernel
def _footprint_axes(viewmats, Ks, c, center, axes, width, height, half):
    """half [2, 3] = J W axes, so that Cov2D = half half^T. Returns the limited slopes at which J is taken."""
    x, y, z = center
    fx, fy, cx, cy = Ks[c, 0, 0], Ks[c, 1, 1], Ks[c, 0, 2], Ks[c, 1, 2]
    margin_x, margin_y = _MARGIN * width / fx, _MARGIN * height / fy
    slope_x = min(max(x / z, -cx / fx - margin_x), (width - cx) / fx + margin_x)
    slope_y = min(max(y / z, -cy / fy - margin_y), (height - cy) / fy + margin_y)
    for j in range(3):
        a0 = viewmats[c, 0, 0] * axes[0, j] + viewmats[c, 0, 1] * axes[1, j] + viewmats[c, 0, 2] * axes[2, j]
        a1 = viewmats[c, 1, 0] * axes[0, j] + viewmats[c, 1, 1] * axes[1, j] + viewmats[c, 1, 2] * axes[2, j]
        a2 = viewmats[c, 2, 0] * axes[0, j] + viewmats[c, 2, 1] * axes[1, j] + viewmats[c, 2, 2] * axes[2, j]
        half[0, j] = fx / z * (a0 - slope_x * a2)
        half[1, j] = fy / z * (a1 - slope_y * a2)
    return slope_x, slope_y


@kernel
def _sh_basis(x, y, z, degree, basis):
    """As ``spherical_harmonics.sh_basis``, for one unit vector."""
    basis[0] = np.float32(0.28209479177387814)
    if degree < 1:
        return
    basis[1] = np.float32(-0.4886025119029199) * y
    basis[2] = np.float32(0.4886025119029199) * z
    basis[3] = np.float32(-0.4886025119029199) * x
    if degree < 2:
        return
    cos2, sin2, zz = x * x - y * y, _F2 * x * y, z * z
    basis[4] = np.float32(0.5462742152960396) * sin2
    basis[5] = np.float32(-1.0925484305920792) * z * y
    basis[6] = np.float32(0.9461746957575601) * zz - np.float32(0.31539156525252005)
    basis[7] = np.float32(-1.0925484305920792) * z * x
    basis[8] = np.float32(0.5462742152960396) * cos2
    if degree < 3:
        return
    cos3, sin3 = x * cos2 - y * sin2, x * sin2 + y * cos2
    band1 = np.float32(-2.285228997322329) * zz + np.float32(0.4570457994644658)
    basis[9] = np.float32(-0.5900435899266435) * sin3
    basis[10] = np.float32(1.445305721320277) * z * sin2
    basis[11] = band1 * y
    basis[12] = z * (np.float32(1.865881662950577) * zz - np.float32(1.119528997770346))
    basis[13] = band1 * x
    basis[14] = np.float32(1.445305721320277) * z * cos2
    basis[15] = np.float32(-0.5900435899266435) * cos3
    if degree < 4:
        return
    cos4, sin4 = x * cos3 - y * sin3, x * sin3 + y * cos3
    band1 = z * (np.float32(-4.683325804901025) * zz + np.float32(2.007139630671868))
    band2 = np.float32(3.31161143515146) * zz - np.float32(0.47308734787878)
    basis[16] = np.float32(0.6258357354491763) * sin4
    basis[17] = np.float32(-1.7701307697799304) * z * sin3
    basis[18] = band2 * sin2
    basis[19] = band1 * y
    basis[20] = zz * (np.float32(3.702494142032151) * zz - np.float32(3.173566407456129)) + np.float32(0.31735664074561293)
    basis[21] = band1 * x
    basis[22] = band2 * cos2
    basis[23] = np.float32(-1.7701307697799304) * z * cos3
    basis[24] = np.float32(0.6258357354491763) * cos4


@kernel
def _sh_slopes(x, y, z, degree, w):
    """Gradient of sum_k w_k Y_k(x, y, z), the Y_k read as polynomials; only its part across (x, y, z) has a meaning."""
    gx, gy, gz = _F0, _F0, _F0
    if degree >= 1:
        c1 = np.float32(0.4886025119029199)
        gx, gy, gz = -c1 * w[3], -c1 * w[1], c1 * w[2]
    if degree >= 2:
        ca, cb = np.float32(1.0925484305920792), np.float32(1.8923493915151202)
        gx += ca * (y * w[4] - z * w[7] + x * w[8])
        gy += ca * (x * w[4] - z * w[5] - y * w[8])
        gz += cb * z * w[6] - ca * (y * w[5] + x * w[7])
    if degree >= 3:
        zz, cos2, sin2 = z * z, x * x - y * y, _F2 * x * y
        c3, c2 = np.float32(1.7701307697799304), np.float32(1.445305721320277)
        band1 = np.float32(-2.285228997322329) * zz + np.float32(0.4570457994644658)
        slope1 = np.float32(-4.570457994644658) * z
        gx += -c3 * (sin2 * w[9] + cos2 * w[15]) + _F2 * c2 * z * (y * w[10] + x * w[14]) + band1 * w[13]
        gy += -c3 * (cos2 * w[9] - sin2 * w[15]) + _F2 * c2 * z * (x * w[10] - y * w[14]) + band1 * w[11]
        gz += c2 * (sin2 * w[10] + cos2 * w[14]) + slope1 * (y * w[11] + x * w[13])
        gz += (np.float32(5.597644988851731) * zz - np.float32(1.119528997770346)) * w[12]
    if degree >= 4:
        cos3, sin3 = x * cos2 - y * sin2, x * sin2 + y * cos2
        c4, c3 = np.float32(2.5033429417967046), np.float32(1.7701307697799304)
        band1 = z * (np.float32(-4.683325804901025) * zz + np.float32(2.007139630671868))
        slope1 = np.float32(-14.049977414703075) * zz + np.float32(2.007139630671868)
        band2 = np.float32(3.31161143515146) * zz - np.float32(0.47308734787878)
        slope2 = np.float32(6.62322287030292) * z
        three = np.float32(3)
        gx += c4 * (sin3 * w[16] + cos3 * w[24]) - three * c3 * z * (sin2 * w[17] + cos2 * w[23])
        gx += _F2 * band2 * (y * w[18] + x * w[22]) + band1 * w[21]
        gy += c4 * (cos3 * w[16] - sin3 * w[24]) - three * c3 * z * (cos2 * w[17] - sin2 * w[23])
        gy += _F2 * band2 * (x * w[18] - y * w[22]) + band1 * w[19]
        gz += -c3 * (sin3 * w[17] + cos3 * w[23]) + slope2 * (sin2 * w[18] + cos2 * w[22])
        gz += slope1 * (y * w[19] + x * w[21])
        gz += z * (np.float32(14.809976568128604) * zz - np.float32(6.347132814912258)) * w[20]
    return gx, gy, gz


@kernel
def _direction(means, positions, n, c):
    """Unit vector from camera c to Gaussian n, and the inverse distance."""
    x, y, z = means[n, 0] - positions[c, 0], means[n, 1] - positions[c, 1], means[n, 2] - positions[c, 2]
    inverse = _F1 / max(math.sqrt(x * x + y * y + z * z), _TINY)
    return x * inverse, y * inverse, z * inverse, inverse


@kernel
def _ceil(x):
    """The next integer above x in [0, _RADIUS_MAX], where larger ones end. math.ceil is a call into the C library."""
    x = min(x, _RADIUS_MAX)
    whole = np.float32(np.int32(x))
    return whole + _F1 if whole < x else whole


@kernel
def project_gaussians(
    start, stop, means, quats, scales, opacities, sh, degree, viewmats, Ks, positions, width, height, near, far, eps2d,
    means2d, depths, conics, radii, colors,
):  # fmt: skip
    """Gaussians start..stop into every camera. degree < 0: sh [N, 1, 3] are plain colors. Outputs are zero before."""
    rotation, axes, half = np.empty((3, 3), np.float32), np.empty((3, 3), np.float32), np.empty((2, 3), np.float32)
    basis = np.empty(_SH_MAX, np.float32)
    terms = (degree + 1) * (degree + 1)
    for n in range(start, stop):
        if not opacities[n] >= _THRESHOLD:
            continue
        extent = min(_EXTENT_MAX, np.float32(math.sqrt(_F2 * math.log(opacities[n] / _THRESHOLD))))
        _scaled_axes(quats, scales, n, rotation, axes)
        for c in range(viewmats.shape[0]):
            center = _to_camera(means, viewmats, n, c)
            x, y, z = center
            if not (z >= near and z <= far):
                continue
            _footprint_axes(viewmats, Ks, c, center, axes, width, height, half)
            xx = half[0, 0] * half[0, 0] + half[0, 1] * half[0, 1] + half[0, 2] * half[0, 2] + eps2d
            xy = half[0, 0] * half[1, 0] + half[0, 1] * half[1, 1] + half[0, 2] * half[1, 2]
            yy = half[1, 0] * half[1, 0] + half[1, 1] * half[1, 1] + half[1, 2] * half[1, 2] + eps2d
            det = xx * yy - xy * xy
            u, v = Ks[c, 0, 0] * x / z + Ks[c, 0, 2], Ks[c, 1, 1] * y / z + Ks[c, 1, 2]
            rx, ry = _ceil(extent * np.float32(math.sqrt(xx))), _ceil(extent * np.float32(math.sqrt(yy)))
            on_image = u + rx > _F0 and u - rx < width and v + ry > _F0 and v - ry < height
            if not (det > _F0 and on_image and (rx > _F0 or ry > _F0)):  # NaN and infinite sizes end here
                continue
            means2d[c, n, 0], means2d[c, n, 1] = u, v
            depths[c, n] = z
            conics[c, n, 0], conics[c, n, 1], conics[c, n, 2] = yy / det, -xy / det, xx / det
            radii[c, n, 0], radii[c, n, 1] = np.int32(rx), np.int32(ry)
            if degree < 0:
                for k in range(3):
                    colors[c, n, k] = sh[n, 0, k]
                continue
            dx, dy, dz, _ = _direction(means, positions, n, c)
            _sh_basis(dx, dy, dz, degree, basis)
            for k in range(3):
                value = _HALF
                for i in range(terms):
                    value += basis[i] * sh[n, i, k]
                colors[c, n, k] = max(value, _F0)


@kernel
def _cov_gradient(conics, v_conics, c, n):
    """Gradient of the 2D covariance (symmetric; xx, xy, yy entries of the matrix): -Q V Q with Q the conic."""
    a, b, d = conics[c, n, 0], conics[c, n, 1], conics[c, n, 2]
    va, vb, vd = v_conics[c, n, 0], _HALF * v_conics[c, n, 1], v_conics[c, n, 2]
    p00, p01 = a * va + b * vb, a * vb + b * vd
    p10, p11 = b * va + d * vb, b * vb + d * vd
    return -(p00 * a + p01 * b), -(p00 * b + p01 * d), -(p10 * b + p11 * d)


@kernel
def _footprint_gradient(viewmats, Ks, c, center, axes, slope_x, slope_y, half, g_xx, g_xy, g_yy, v_axes):
    """From the covariance's gradient to the axes' (added to v_axes) and the center's (returned, camera frame)."""
    x, y, z = center
    sx, sy = Ks[c, 0, 0] / z, Ks[c, 1, 1] / z
    v_sx, v_sy, v_slope_x, v_slope_y = _F0, _F0, _F0, _F0
    for j in range(3):
        h0, h1 = _F2 * (g_xx * half[0, j] + g_xy * half[1, j]), _F2 * (g_xy * half[0, j] + g_yy * half[1, j])
        a2 = viewmats[c, 2, 0] * axes[0, j] + viewmats[c, 2, 1] * axes[1, j] + viewmats[c, 2, 2] * axes[2, j]
        v_sx += h0 * half[0, j]  # half is proportional to fx / z: divided by it below
        v_sy += h1 * half[1, j]
        v_slope_x -= h0 * sx * a2
        v_slope_y -= h1 * sy * a2
        a0, a1 = h0 * sx, h1 * sy
        a2 = -h0 * sx * slope_x - h1 * sy * slope_y
        for i in range(3):
            v_axes[i, j] += viewmats[c, 0, i] * a0 + viewmats[c, 1, i] * a1 + viewmats[c, 2, i] * a2
    v_x, v_y, v_z = _F0, _F0, -(v_sx + v_sy) / z
    if slope_x == x / z:  # not limited
        v_x = v_slope_x / z
        v_z -= v_slope_x * slope_x / z
    if slope_y == y / z:
        v_y = v_slope_y / z
        v_z -= v_slope_y * slope_y / z
    return v_x, v_y, v_z


@kernel
def _color_gradient(means, positions, sh, degree, colors, v_colors, c, n, basis, weights, v_sh):
    """Add to v_sh[n] and return the gradient of the mean through the viewing direction."""
    dx, dy, dz, inverse = _direction(means, positions, n, c)
    _sh_basis(dx, dy, dz, degree, basis)
    v0 = v_colors[c, n, 0] if colors[c, n, 0] > _F0 else _F0
    v1 = v_colors[c, n, 1] if colors[c, n, 1] > _F0 else _F0
    v2 = v_colors[c, n, 2] if colors[c, n, 2] > _F0 else _F0
    for i in range((degree + 1) * (degree + 1)):
        v_sh[n, i, 0] += basis[i] * v0
        v_sh[n, i, 1] += basis[i] * v1
        v_sh[n, i, 2] += basis[i] * v2
        weights[i] = sh[n, i, 0] * v0 + sh[n, i, 1] * v1 + sh[n, i, 2] * v2
    gx, gy, gz = _sh_slopes(dx, dy, dz, degree, weights)
    along = gx * dx + gy * dy + gz * dz
    return (gx - along * dx) * inverse, (gy - along * dy) * inverse, (gz - along * dz) * inverse


@kernel
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


@kernel
def projection_gradients(
    start, stop, means, quats, scales, sh, degree, viewmats, Ks, positions, width, height,
    conics, radii, colors, v_means2d, v_depths, v_conics, v_colors, v_means, v_quats, v_scales, v_sh,
):  # fmt: skip
    """Gradients of Gaussians start..stop, summed over the cameras. Outputs are zero before."""
    rotation, axes, half = np.empty((3, 3), np.float32), np.empty((3, 3), np.float32), np.empty((2, 3), np.float32)
    v_axes = np.empty((3, 3), np.float32)
    basis, weights = np.empty(_SH_MAX, np.float32), np.empty(_SH_MAX, np.float32)
    for n in range(start, stop):
        inverse = _scaled_axes(quats, scales, n, rotation, axes)
        v_axes[:] = _F0
        for c in range(viewmats.shape[0]):
            if radii[c, n, 0] <= 0 and radii[c, n, 1] <= 0:
                continue
            center = _to_camera(means, viewmats, n, c)
            x, y, z = center
            slope_x, slope_y = _footprint_axes(viewmats, Ks, c, center, axes, width, height, half)
            g_xx, g_xy, g_yy = _cov_gradient(conics, v_conics, c, n)
            gx, gy, gz = _footprint_gradient(
                viewmats, Ks, c, center, axes, slope_x, slope_y, half, g_xx, g_xy, g_yy, v_axes
            )
            gu, gv = Ks[c, 0, 0] / z * v_means2d[c, n, 0], Ks[c, 1, 1] / z * v_means2d[c, n, 1]
            gx += gu
            gy += gv
            gz += v_depths[c, n] - (gu * x + gv * y) / z
            for i in range(3):
                v_means[n, i] += viewmats[c, 0, i] * gx + viewmats[c, 1, i] * gy + viewmats[c, 2, i] * gz
            if degree < 0:
                for k in range(3):
                    v_sh[n, 0, k] += v_colors[c, n, k]
            else:
                gx, gy, gz = _color_gradient(means, positions, sh, degree, colors, v_colors, c, n, basis, weights, v_sh)
                v_means[n, 0] += gx
                v_means[n, 1] += gy
                v_means[n, 2] += gz
        for j in range(3):
            v_scales[n, j] = v_axes[0, j] * rotation[0, j] + v_axes[1, j] * rotation[1, j] + v_axes[2, j] * rotation[2, j]
            for i in range(3):
                v_axes[i, j] *= scales[n, j]  # now the gradient of the rotation
        gw, gx, gy, gz = _quat_gradient(quats, n, inverse, v_axes)
        v_quats[n, 0], v_quats[n, 1], v_quats[n, 2], v_quats[n, 3] = gw, gx, gy, gz
