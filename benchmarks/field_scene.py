"""The field of vdm-nerf.yaml in front of one camera, at its start or fitted to a ball."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import torch
from field_report import Bench
from torch import Tensor

import threestudio
from threestudio.models.renderers.rays import Rays
from threestudio.utils.config import load_config
from threestudio.utils.ops import get_ray_directions, get_rays

CONFIG = Path(__file__).resolve().parents[1] / "custom" / "dreammapping" / "configs" / "vdm-nerf.yaml"
BALL_RADIUS, BALL_DENSITY = 0.4, 60.0  # world units; a step stops a third of the light


def fit_ball(geometry: Any, renderer: Any, steps: int, count: int) -> None:
    """Make the field a ball, and let the occupancy grid see it."""
    device = renderer.bbox.device
    optimizer = torch.optim.Adam(
        [
            {"params": geometry.encoding.parameters(), "lr": 0.01},
            {"params": geometry.density_network.parameters(), "lr": 0.001},
        ],
        eps=1e-15,
    )
    for _ in range(steps):
        points = (torch.rand(count, 3, device=device) - 0.5) * 1.4
        target = BALL_DENSITY * (points.norm(dim=-1, keepdim=True) < BALL_RADIUS)
        # As light, so that neither side outweighs the other: a density of 1000 is as opaque as one of 100.
        light = torch.exp(-geometry.forward_density(points) * 0.02)
        loss = (light - torch.exp(-target * 0.02)).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    for step in range(0, 256, 16):
        renderer.update_step(0, step)


class Scene:
    """The config's field seen by one camera."""

    def __init__(self, bench: Bench, size: int, fitted: bool = False, overrides: tuple[str, ...] = ()) -> None:
        torch.manual_seed(0)
        parts = load_config(CONFIG, cli_args=["use_timestamp=false", *overrides]).system
        self.geometry, self.material, self.background = (
            threestudio.find(parts[f"{kind}_type"])(parts[kind]) for kind in ("geometry", "material", "background")
        )
        made = {"geometry": self.geometry, "material": self.material, "background": self.background}
        self.renderer = threestudio.find(parts.renderer_type)(parts.renderer, **made)
        self.modules = [*made.values(), self.renderer]
        for module in self.modules:
            module.to(bench.device).train()
        self._prepare(bench, fitted)
        pose = torch.eye(4)[None, :3]
        pose[:, 2, 3] = 1.25  # the middle of the config's distances and angles; the camera looks along -z
        local = get_ray_directions(size, size, 0.5 * size / math.tan(math.radians(55) / 2))[None]
        origins, directions = (v.to(bench.device) for v in get_rays(local, pose, keepdim=True))
        self.batch = {
            "rays_o": origins,
            "rays_d": directions,
            "light_positions": torch.zeros(1, 3, device=bench.device),
        }
        self.rays = Rays(origins.reshape(-1, 3), directions.reshape(-1, 3), self.batch["light_positions"])

    def _prepare(self, bench: Bench, fitted: bool) -> None:
        """Fitted once; the others take the first one's state, so that all render the same."""
        parts = {"geometry": self.geometry, "estimator": self.renderer.estimator}
        if fitted and bench.fitted:
            for name, part in parts.items():
                part.load_state_dict(bench.fitted[name])
            return
        fit_ball(self.geometry, self.renderer, *(bench.fit if fitted else (0, 0)))
        if fitted:
            bench.fitted = {name: copy.deepcopy(part.state_dict()) for name, part in parts.items()}

    def parameters(self) -> list[Tensor]:
        return [p for module in (self.geometry, self.material, self.background) for p in module.parameters()]

    def forward(self) -> dict[str, Any]:
        return self.renderer(**self.batch)

    def forward_and_backward(self) -> dict[str, Any]:
        for parameter in self.parameters():
            parameter.grad = None
        out = self.forward()
        (out["comp_rgb"].square().mean() + out["opacity"].square().mean()).backward()
        return out
