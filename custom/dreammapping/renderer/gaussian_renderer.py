"""Draws a Gaussian geometry in front of a background."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import threestudio
import torch
from threestudio.models.renderers.base import Rasterizer
from torch import Tensor

from ..errors import ConfigError
from ..rasterization import BACKENDS, rasterize
from .cameras import intrinsics, world_to_camera
from .clamp import StayInRange


@threestudio.register("dreammapping-gaussian-renderer")
class GaussianRenderer(Rasterizer):
    """Rasterizes `geometry.gaussians`: on CUDA with gsplat, on the CPU with numba, anywhere with the reference."""

    @dataclass
    class Config(Rasterizer.Config):
        backend: str = "auto"
        """auto, gsplat (CUDA), numba (CPU) or reference (any device, slow)."""
        near: float = 0.01
        """Gaussians with a center nearer to the camera plane are left out; world units."""
        far: float = 1e10
        eps2d: float = 0.3
        """Variance in square pixels added to each footprint, so that none falls between pixels."""

    cfg: Config

    def configure(self, geometry: Any, material: Any, background: Any) -> None:
        super().configure(geometry=geometry, material=material, background=background)
        if self.cfg.backend not in BACKENDS:
            raise ConfigError(
                f"system.renderer.backend is {self.cfg.backend!r}; it must be one of {', '.join(BACKENDS)}"
            )
        if not hasattr(geometry, "gaussians"):
            raise ConfigError(
                f"dreammapping-gaussian-renderer draws Gaussians; the geometry is {type(geometry).__name__}. "
                "Choose system.geometry_type=dreammapping-gaussians, or the renderer that fits the geometry."
            )

    def forward(
        self, c2w: Tensor, fovy: Tensor, height: int, width: int, rays_d: Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Render B views.

        Args:
            c2w: [B, 4, 4] camera to world, OpenGL axes.
            fovy: [B] vertical field of view, radians.
            height, width: image size in pixels.
            rays_d: [B, H, W, 3] view directions for the background; computed from the camera when absent.

        Returns:
            comp_rgb [B, H, W, 3] in [0, 1]; comp_rgb_bg [B, H, W, 3]; opacity [B, H, W, 1] in [0, 1];
            depth [B, H, W, 1] expected distance along the camera's axis, 0 where empty; rasterization, whose `info`
            the densification reads.
        """
        Ks = intrinsics(fovy, int(height), int(width))
        drawn = rasterize(
            **self.geometry.gaussians.rasterizer_inputs(),
            viewmats=world_to_camera(c2w),
            Ks=Ks,
            width=int(width),
            height=int(height),
            near=self.cfg.near,
            far=self.cfg.far,
            eps2d=self.cfg.eps2d,
            backend=self.cfg.backend,
        )
        directions = rays_d if rays_d is not None else ray_directions(c2w, Ks, int(height), int(width))
        behind = self.background(dirs=directions)
        return {
            "comp_rgb": StayInRange.apply(drawn.rgb + (1.0 - drawn.alpha) * behind),
            "comp_rgb_bg": behind,
            "opacity": drawn.alpha,
            "depth": drawn.depth,
            "rasterization": drawn,
        }


def ray_directions(c2w: Tensor, Ks: Tensor, height: int, width: int) -> Tensor:
    """[B, H, W, 3] unit directions through the pixel centers, world axes; `c2w` OpenGL, `Ks` pixels."""
    y, x = torch.meshgrid(
        torch.arange(height, dtype=c2w.dtype, device=c2w.device) + 0.5,
        torch.arange(width, dtype=c2w.dtype, device=c2w.device) + 0.5,
        indexing="ij",
    )
    focal, cx, cy = Ks[:, 0, 0, None, None], Ks[:, 0, 2, None, None], Ks[:, 1, 2, None, None]
    local = torch.stack([(x - cx) / focal, (cy - y) / focal, -torch.ones_like(x).expand(len(c2w), -1, -1)], dim=-1)
    world = torch.einsum("bij,bhwj->bhwi", c2w[:, :3, :3], local)
    return torch.nn.functional.normalize(world, dim=-1)
