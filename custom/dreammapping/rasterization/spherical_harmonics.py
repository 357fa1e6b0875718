"""Real spherical harmonics up to degree 4, in the basis (signs included) of 3D Gaussian Splatting and gsplat."""

from __future__ import annotations

import torch
from torch import Tensor

MAX_SH_DEGREE = 4


def sh_basis(directions: Tensor, degree: int) -> Tensor:
    """Values of the first (degree + 1)^2 real spherical harmonics, in the order l = 0.., m = -l..l.

    The constants are the usual normalisation sqrt((2l+1)/(4 pi) (l-|m|)!/(l+|m|)!) with the Condon-Shortley phase
    (see P.-P. Sloan, "Efficient Spherical Harmonic Evaluation", JCGT 2013).

    Args:
        directions: [..., 3] unit vectors.
        degree: 0 to 4.

    Returns:
        [..., (degree + 1)^2]
    """
    x, y, z = directions.unbind(-1)
    basis = [torch.full_like(x, 0.28209479177387814)]
    if degree >= 1:
        basis += [-0.4886025119029199 * y, 0.4886025119029199 * z, -0.4886025119029199 * x]
    if degree >= 2:
        cos2, sin2, zz = x * x - y * y, 2 * x * y, z * z
        basis += [
            0.5462742152960396 * sin2,
            -1.0925484305920792 * z * y,
            0.9461746957575601 * zz - 0.31539156525252005,
            -1.0925484305920792 * z * x,
            0.5462742152960396 * cos2,
        ]
    if degree >= 3:
        cos3, sin3 = x * cos2 - y * sin2, x * sin2 + y * cos2
        band1 = -2.285228997322329 * zz + 0.4570457994644658
        basis += [
            -0.5900435899266435 * sin3,
            1.445305721320277 * z * sin2,
            band1 * y,
            z * (1.865881662950577 * zz - 1.119528997770346),
            band1 * x,
            1.445305721320277 * z * cos2,
            -0.5900435899266435 * cos3,
        ]
    if degree >= 4:
        cos4, sin4 = x * cos3 - y * sin3, x * sin3 + y * cos3
        band1 = z * (-4.683325804901025 * zz + 2.007139630671868)
        band2 = 3.31161143515146 * zz - 0.47308734787878
        basis += [
            0.6258357354491763 * sin4,
            -1.7701307697799304 * z * sin3,
            band2 * sin2,
            band1 * y,
            zz * (3.702494142032151 * zz - 3.173566407456129) + 0.31735664074561293,
            band1 * x,
            band2 * cos2,
            -1.7701307697799304 * z * cos3,
            0.6258357354491763 * cos4,
        ]
    return torch.stack(basis, dim=-1)


def sh_to_rgb(coefficients: Tensor, directions: Tensor, degree: int) -> Tensor:
    """Color seen along unit ``directions``: max(sum_k Y_k c_k + 0.5, 0).

    Args:
        coefficients: [..., K, 3] with K >= (degree + 1)^2; the ones above the degree are ignored.
        directions: [..., 3] unit vectors from the camera to the point, broadcastable to the coefficients' ``...``.

    Returns:
        [..., 3], not limited above.
    """
    basis = sh_basis(directions, degree)
    used = coefficients[..., : basis.shape[-1], :]
    return ((basis[..., None] * used).sum(-2) + 0.5).clamp_min(0.0)
