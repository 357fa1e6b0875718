"""Rotation by quaternions."""

from __future__ import annotations

import torch
from torch import Tensor


def rotate(quats: Tensor, vectors: Tensor) -> Tensor:
    """Turn vectors [N, 3] by quaternions [N, 4] (w x y z, any length but zero)."""
    unit = torch.nn.functional.normalize(quats, dim=-1)
    w, axis = unit[:, :1], unit[:, 1:]
    twice = 2.0 * torch.linalg.cross(axis, vectors)
    return vectors + w * twice + torch.linalg.cross(axis, twice)


def rotate_back(quats: Tensor, vectors: Tensor) -> Tensor:
    """Inverse of `rotate`."""
    conjugate = torch.cat([quats[:, :1], -quats[:, 1:]], dim=-1)
    return rotate(conjugate, vectors)
