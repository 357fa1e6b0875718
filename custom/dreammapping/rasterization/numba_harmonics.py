"""numba helpers: the spherical harmonics of ``spherical_harmonics`` for one unit vector, and their slopes."""

from __future__ import annotations

import numpy as np

from .numba_runtime import inlined

SH_MAX = 25
"""Number of harmonics up to the highest degree, 4."""

_F0, _F2 = np.float32(0), np.float32(2)


@inlined
def sh_basis(x, y, z, degree, basis):
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


@inlined
def sh_slopes(x, y, z, degree, w):
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
