"""Density fields with closed-form integrals, for tests of renderers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from threestudio import register
from threestudio.models.geometry.base import BaseImplicitGeometry


@register("test-blob-field")
class BlobField(BaseImplicitGeometry):
    """Density `peak * exp(-|x|^2 / (2 spread^2))`, or with `hard` the density `peak` where |x| < spread, else 0.

    Features are `points @ mixing + offset`; normals point away from the center. All three numbers are parameters.
    """

    @dataclass
    class Config(BaseImplicitGeometry.Config):
        peak: float = 20.0
        spread: float = 0.25
        hard: bool = False

    cfg: Config

    def configure(self) -> None:
        super().configure()
        self.peak = nn.Parameter(torch.tensor(float(self.cfg.peak)))
        self.mixing = nn.Parameter(torch.tensor([[1.0, -2.0, 0.5], [0.3, 1.0, -1.0], [2.0, 0.1, 1.0]]))
        self.offset = nn.Parameter(torch.tensor([0.2, -0.1, 0.4]))
        self.asked: list[int] = []  # number of points of each call of `forward`

    def forward_density(self, points: Tensor) -> Tensor:
        square = points.square().sum(-1, keepdim=True)
        if self.cfg.hard:
            return self.peak * (square < self.cfg.spread**2)
        return self.peak * torch.exp(-square / (2 * self.cfg.spread**2))

    def forward(self, points: Tensor, output_normal: bool = False) -> dict[str, Any]:
        self.asked.append(len(points))
        found = {"density": self.forward_density(points), "features": points @ self.mixing + self.offset}
        if output_normal:
            normal = nn.functional.normalize(points, dim=-1)
            found.update(normal=normal, shading_normal=normal)
        return found
