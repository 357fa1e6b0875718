"""Turning, scaling and moving Gaussians, with everything that belongs to them."""

from __future__ import annotations

import numpy as np
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from ..rasterization.spherical_harmonics import sh_basis
from .model import GaussianModel


def transform_gaussians(model: GaussianModel, rotation: Tensor, *, center: Tensor, factor: float) -> GaussianModel:
    """A copy in which every place x became factor * (rotation @ x - center), on the same device.

    Sizes, orientations and what each side shows (the spherical harmonics) go along: from a camera that moves in the same
    way the picture stays the same.

    Args:
        rotation: [3, 3], proper and orthogonal.
        center: [3], in the turned axes.
        factor: > 0.
    """
    copy = model.with_sh_degree(model.sh_degree)
    copy.active_sh_degree = model.active_sh_degree
    turn = rotation.double()
    with torch.no_grad():
        means = copy.params["means"]
        means.copy_((means.double() @ turn.T.to(means.device) - center.double().to(means.device)) * factor)
        copy.params["scales"].add_(float(np.log(factor)))
        x, y, z, w = Rotation.from_matrix(turn.cpu().numpy()).as_quat()
        quats = copy.params["quats"]
        quats.copy_(_multiply(torch.tensor([w, x, y, z], dtype=torch.float64, device=quats.device), quats.double()))
        if model.sh_degree > 0:
            rest = copy.params["shN"]
            matrix = sh_rotation(turn.cpu(), model.sh_degree).to(rest)
            rest.copy_(torch.einsum("ij,njc->nic", matrix[1:, 1:], rest))
    return copy


def sh_rotation(rotation: Tensor, degree: int) -> Tensor:
    """[K, K] float64 matrix, K = (degree + 1)^2, that turns SH coefficients with the object they belong to.

    For coefficients c of a color seen along d, the turned object shows along R d what it showed along d:
    Y(R d) . (matrix @ c) = Y(d) . c, solved from more directions than there are coefficients.

    Args:
        rotation: [3, 3] R, on the CPU.
        degree: 0 to 4.
    """
    count = 4 * (degree + 1) ** 2
    directions = torch.randn(count, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    directions = torch.nn.functional.normalize(directions, dim=-1)
    turned = directions @ rotation.double().T
    return torch.linalg.lstsq(sh_basis(turned, degree), sh_basis(directions, degree)).solution


def _multiply(first: Tensor, second: Tensor) -> Tensor:
    """The quaternions (w x y z) that rotate by `second` [N, 4] and then by `first` [4]."""
    w, axis = first[0], first[1:]
    scalar, vector = second[:, :1], second[:, 1:]
    real = w * scalar - (vector * axis).sum(-1, keepdim=True)
    return torch.cat([real, w * vector + scalar * axis + torch.linalg.cross(axis.expand_as(vector), vector)], dim=-1)
