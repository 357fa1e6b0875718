"""A density field with closed-form integrals, and renderers and views of it, for tests of volume rendering."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from threestudio import find, register
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


PROPOSAL = {
    "estimator": "proposal",
    "proposal_network_config": {
        "n_input_dims": 3,
        "n_output_dims": 1,
        "encoding_config": {"otype": "Frequency", "n_frequencies": 3},
        "network_config": {"otype": "VanillaMLP", "n_neurons": 16, "n_hidden_layers": 1},
    },
    "prop_optimizer_config": {"name": "Adam", "args": {"lr": 0.01}},
    "prop_scheduler_config": {"name": "ExponentialLR", "args": {"gamma": 0.999}},
    "num_samples_per_ray": 48,
}
ESTIMATORS = [{"num_samples_per_ray": 128}, {"estimator": "importance", "num_samples_per_ray": 64}, PROPOSAL]


def build(config=None, field=None, material=("no-material", {}), background=None):
    """A renderer, with what it looks at as attributes kept alive."""
    torch.manual_seed(0)
    parts = {
        "geometry": BlobField(field or {}),
        "material": find(material[0])(material[1]),
        "background": find("solid-color-background")(background or {"color": [0.2, 0.4, 0.6]}),
    }
    return find("nerf-volume-renderer")(config or {}, **parts)


def views(count=2, height=6, width=5, distance=2.0):
    """Parallel rays along -x, from the plane x = distance; the second view from the other side."""
    z, y = torch.meshgrid(torch.linspace(0.9, -0.9, height), torch.linspace(-0.9, 0.9, width), indexing="ij")
    origins = torch.stack([torch.full_like(y, distance), y, z], dim=-1)
    directions = torch.tensor([-1.0, 0.0, 0.0]).expand_as(origins)
    flip = torch.tensor([-1.0, -1.0, 1.0])
    rays_o, rays_d = (torch.stack([value, value * flip][:count]) for value in (origins, directions))
    return {"rays_o": rays_o, "rays_d": rays_d, "light_positions": rays_o[:, 0, 0] * 1.5}
