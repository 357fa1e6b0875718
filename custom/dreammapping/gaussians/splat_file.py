"""Reading .splat files (antimatter15's layout): 32 bytes a Gaussian, without view dependence."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .model import GaussianModel, rgb_to_sh0
from .ply import GaussianFileError

_ROW = np.dtype([("position", "<f4", 3), ("scale", "<f4", 3), ("color", "u1", 4), ("rotation", "u1", 4)])
_SMALLEST = 1e-8
"""Standard deviations below have no usable logarithm (some writers flatten Gaussians to nothing)."""


def read_splat(path: str | os.PathLike[str]) -> GaussianModel:
    """The Gaussians of a .splat file, of SH degree 0, in the file's order.

    Colors and opacities have 8 bits; opacities 0 and 255 are read as half a step inside of (0, 1), whose logit is finite.

    Raises:
        GaussianFileError: missing, empty, or not a whole number of rows.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as problem:
        raise GaussianFileError(f"{path}: cannot be read ({problem.strerror or problem})") from problem
    if len(data) == 0:
        raise GaussianFileError(f"{path}: contains no Gaussians")
    if len(data) % _ROW.itemsize:
        raise GaussianFileError(
            f"{path}: no .splat file, or cut short: its {len(data)} bytes are no multiple of {_ROW.itemsize}, the size of a Gaussian"
        )
    rows = np.frombuffer(data, _ROW)
    quats = (_floats(rows["rotation"]) - 128.0) / 128.0
    quats[quats.norm(dim=-1) == 0] = torch.tensor([1.0, 0.0, 0.0, 0.0])
    color = _floats(rows["color"]) / 255.0
    values = {
        "means": _floats(rows["position"]),
        "scales": _floats(rows["scale"]).clamp_min(_SMALLEST).log(),
        "quats": quats,
        "opacities": torch.logit(color[:, 3], eps=0.5 / 255.0),
        "sh0": rgb_to_sh0(color[:, :3])[:, None],
    }
    model = GaussianModel(0, len(rows))
    with torch.no_grad():
        for name, value in values.items():
            model.params[name].copy_(value)
    return model


def _floats(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))
